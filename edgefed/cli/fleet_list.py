"""`edgefed fleet list | show`: who belongs to a fleet, and how each device is."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgefed.cli.fleet_members import certificate_json, certificate_row, certificate_state

if TYPE_CHECKING:
    from edgefed.cli.fleet_devices import KnownDevice
    from edgefed.security.fleet_directory import FleetDirectory

__all__ = ["CONFIG_OPTION", "JSON_OPTION", "LABEL_OPTION", "RUN_OPTION", "list_fleet", "show"]

_RUN: Any = typer.Option("--run", "-r", help="The run's directory, of the aggregator.", file_okay=False)
_CONFIG: Any = typer.Option("--config", "-c", help="The federation.toml that names the run.", dir_okay=False)
RUN_OPTION: Any = typer.Option(
    "--run", "-r", help="The run's directory, of the aggregator.  [default: what --config names]", file_okay=False
)
CONFIG_OPTION: Any = typer.Option(
    "--config", "-c", help="The federation.toml that names the run.  [default: ./federation.toml]", dir_okay=False
)
LABEL_OPTION: Any = typer.Option("--label", "-l", help="Only devices with this label, KEY=VALUE; may be repeated.")
JSON_OPTION: Any = typer.Option("--json", help="Write one JSON document.")
_FLEET: Any = typer.Option("--fleet", "-f", help="The fleet's directory.", file_okay=False)

_COLUMNS = ("device", "standing", "status", "round", "seen", "plan", "hardware", "labels", "note")


def list_fleet(
    fleet: Annotated[Path | None, _FLEET] = None,
    run: Annotated[Path | None, _RUN] = None,
    config: Annotated[Path | None, _CONFIG] = None,
    label: Annotated[list[str] | None, LABEL_OPTION] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every certificate, not just everybody's newest; removed devices too.")
    ] = False,
    json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """List the devices of a run: what each is wanted for, what it is doing, when it was last heard.

    With --run or --config the list is of devices, from what the aggregator has on disk; with --fleet too, each has the
    state of its certificate. With --fleet alone, or nothing (then the fleet is in this directory), the list is of
    everybody's certificates, and until when they count.

    Examples:
      edgefed fleet list --run edgefed-run
      edgefed fleet list --config federation.toml --fleet kitchen --label room=lab
      edgefed fleet list -r edgefed-run --all --json
      edgefed fleet list --fleet kitchen
      edgefed fleet list -f kitchen --all --json
    """
    from edgefed.errors import ConfigError

    if run is None and config is None:
        if label:
            raise ConfigError("--label goes by the roster of a run: name it with --run or --config")
        _list_members(fleet or Path(), everything=everything, as_json=json)
    else:
        _list_devices(_run(run, config), fleet, label or [], everything=everything, as_json=json)


def show(
    device: Annotated[str, typer.Argument(help="A device id.")],
    run: Annotated[Path | None, RUN_OPTION] = None,
    config: Annotated[Path | None, CONFIG_OPTION] = None,
    fleet: Annotated[Path | None, _FLEET] = None,
    json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Show everything that is known of one device: standing, labels, state, plan, profile, certificate.

    Examples:
      edgefed fleet show board-07 --run edgefed-run
      edgefed fleet show board-07 -c federation.toml --fleet kitchen --json
    """
    from edgefed.cli.fleet_devices import known_devices, one_of
    from edgefed.cli.output import told_where, write_json, write_table
    from edgefed.cli.profile_view import profile_lines

    with told_where(fleet or Path()):
        known = one_of(known_devices(_run(run, config), _opened(fleet)), device)
    if json:
        write_json(_device_json(known, with_certificate=fleet is not None))
        return
    lines = [(name, value, "") for name, value in _details(known, with_certificate=fleet is not None)]
    write_table(
        ("what", "value", "how, or why not"), [*lines, *(profile_lines(known.profile) if known.profile else [])]
    )


def _run(run: Path | None, config: Path | None) -> Path:
    from edgefed.cli.fleet_devices import run_directory

    return run_directory(run, config)


def _opened(fleet: Path | None) -> FleetDirectory | None:
    from edgefed.security.fleet_directory import FleetDirectory

    return None if fleet is None else FleetDirectory(fleet)


def _list_devices(run: Path, fleet: Path | None, labels: list[str], *, everything: bool, as_json: bool) -> None:
    from edgefed.cli.fleet_devices import known_devices
    from edgefed.cli.output import told_where, write_json, write_table
    from edgefed.coordinator.roster import parse_labels

    wanted = parse_labels(labels).items()
    with told_where(fleet or Path()):
        directory = _opened(fleet)
        known = known_devices(run, directory)
    labelled = [one for one in known.values() if wanted <= one.entry.labels.items()]
    if labels and not labelled:
        typer.echo(f"no device has the labels {' '.join(labels)}", err=True)
    shown = [one for one in labelled if everything or one.standing != "removed"]
    if as_json:
        document: dict[str, object] = {"run": str(run)}
        if directory is not None:
            document["fleet"] = directory.fleet
        document["devices"] = [_device_json(one, with_certificate=directory is not None) for one in shown]
        write_json(document)
        return
    header = (*_COLUMNS[:1], *(("certificate",) if directory else ()), *_COLUMNS[1:])
    write_table(header, [_device_row(one, with_certificate=directory is not None) for one in shown])


def _list_members(fleet: Path, *, everything: bool, as_json: bool) -> None:
    from edgefed.cli.output import told_where, write_json, write_table
    from edgefed.security.fleet_directory import FleetDirectory

    now = datetime.now(timezone.utc)
    with told_where(fleet):
        directory = FleetDirectory(fleet)
        entries = directory.issued()
    newest = {entry.identity: entry for entry in entries}
    shown = [entry for entry in entries if everything or newest[entry.identity] is entry]
    if as_json:
        certificates = [certificate_json(entry, newest, now) for entry in shown]
        write_json({"fleet": directory.fleet, "certificates": certificates})
        return
    header = ("name", "role", "state", "ends", "days left", "serial")
    write_table(header, [tuple(certificate_row(entry, newest, now)) for entry in shown])


def _certificate(known: KnownDevice) -> str:
    entry = known.certificate
    return "none" if entry is None else certificate_state(entry, {entry.identity: entry}, datetime.now(timezone.utc))


def _device_row(known: KnownDevice, *, with_certificate: bool) -> tuple[object, ...]:
    state = None if known.sighting is None else known.sighting.state
    return (
        known.device,
        *((_certificate(known),) if with_certificate else ()),
        known.standing,
        known.status,
        (state.round or "") if state else "",
        known.seen,
        known.plan,
        known.hardware,
        known.labels,
        known.entry.reason or (state.note if state else ""),
    )


def _device_json(known: KnownDevice, *, with_certificate: bool) -> dict[str, Any]:
    document = known.as_json()
    if with_certificate:
        entry = known.certificate
        now = datetime.now(timezone.utc)
        document["certificate"] = None if entry is None else certificate_json(entry, {entry.identity: entry}, now)
    return document


def _details(known: KnownDevice, *, with_certificate: bool) -> list[tuple[str, object]]:
    from edgefed.cli.fleet_devices import clock

    state = None if known.sighting is None else known.sighting.state
    since = f", since {clock(known.entry.since_unix_s)}" if known.entry.since_unix_s else ""
    found: list[tuple[str, object]] = [
        ("device", known.device),
        ("standing", f"{known.standing}{since}"),
        ("reason", known.entry.reason),
        ("labels", known.labels),
        ("status", known.status),
        ("round", (state.round or "") if state else ""),
        ("note", state.note if state else ""),
        ("last heard", known.seen),
        ("plan", known.plan),
    ]
    if with_certificate:
        ends = f", ends {known.certificate.ends:%Y-%m-%d}" if known.certificate else ""
        found.append(("certificate", f"{_certificate(known)}{ends}"))
    return [(name, value) for name, value in found if value not in ("", None)]
