"""`edgefed fleet update`: a new release of the agent for a fleet, in stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgefed.cli.fleet_list import JSON_OPTION, LABEL_OPTION

if TYPE_CHECKING:
    from edgefed.coordinator.options import FederationOptions
    from edgefed.coordinator.rollout import Rollout

__all__ = ["update"]


def update(
    release: Annotated[
        list[Path] | None,
        typer.Argument(help="Bundles, one for each kind of machine; or a directory of wheels, which is made into one."),
    ] = None,
    config: Annotated[
        Path, typer.Option("--config", "-c", help="The federation.toml of the aggregator.", dir_okay=False)
    ] = Path("federation.toml"),
    percent: Annotated[str, typer.Option(help="The stages: percent of the devices, growing.")] = "10,50,100",
    labels: Annotated[list[str] | None, LABEL_OPTION] = None,
    max_failures: Annotated[int, typer.Option(help="More devices that fail than this end the update.", min=0)] = 0,
    patience: Annotated[str, typer.Option(help="A device with nothing new to say for so long has failed.")] = "30min",
    architecture: Annotated[str, typer.Option(help="Of the machines that wheels are for.  [default: theirs]")] = "",
    python: Annotated[str, typer.Option(help="Of those machines, as 3.11.  [default: theirs]")] = "",
    name: Annotated[str, typer.Option(help="What the release is called.  [default: edgefed's version]")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Only make the bundle, and write it here.", dir_okay=False)
    ] = None,
    stop: Annotated[bool, typer.Option("--stop", help="Offer the present release to nobody else.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Watch until it is over.")] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Bring a new release of the agent to the devices, in stages, each after the one before it is well.

    Run it on the aggregator's machine, while the aggregator runs: that signs, offers and sends, goes on when this
    command is ended, and stays until devices have what they were offered, should its federation end before. Run the
    same again, or with nothing, to see how far it is. Devices build the release beside the old one, try it, and go back
    by themselves where it does not come up. A fleet without signatures gets no code.

    A directory of wheels holds edgefed, pip and all that edgefed needs, as for `edgefed flash`.

    Examples:
      edgefed fleet update wheels --percent 10,50,100 --max-failures 1
      edgefed fleet update wheels --architecture aarch64 --python 3.11 --output spring.bundle
      edgefed fleet update spring.bundle spring-x86.bundle --label room=lab --yes
      edgefed fleet update
      edgefed fleet update --stop
    """
    from edgefed.cli.fleet_update_view import follow, show_once, tell_what_becomes_of_it
    from edgefed.config import read_federation

    options = read_federation(config)
    run = _run(options)
    if output is not None:
        _make_only(options, run, release or [], output, architecture, python, name, labels or [])
        return
    if stop:
        rollout = _stopped(run)
        show_once(run, rollout, as_json=json)
        tell_what_becomes_of_it(run, rollout)
        return
    if release:
        wish = _wish(percent, labels or [], max_failures, patience)
        rollout = _begin(options, run, release, wish, (architecture, python, name), ask=not yes)
    else:
        rollout = _present(run)
    if wait:
        follow(run, rollout, as_json=json)
    else:
        show_once(run, rollout, as_json=json)
        tell_what_becomes_of_it(run, rollout)


def _run(options: FederationOptions) -> Path:
    from edgefed.cli.fleet_devices import run_directory
    from edgefed.errors import UpdateError

    if not options.broker.signed:
        raise UpdateError(
            "this fleet has no signatures, and code is never installed unsigned: set [broker] signed = true here and "
            "in each agent.toml"
        )
    return run_directory(Path(options.directory), None)


def _present(run: Path) -> Rollout:
    """Returns the update that was begun."""
    from edgefed.coordinator.rollout_desk import read_rollout
    from edgefed.errors import ConfigError

    rollout = read_rollout(run)
    if rollout is None:
        raise ConfigError("no update has been begun: name a bundle, or a directory of wheels")
    return rollout


def _stopped(run: Path) -> Rollout:
    from msgspec.structs import replace

    from edgefed.coordinator.rollout_desk import write_rollout

    rollout = replace(_present(run), stopped=True)
    write_rollout(run, rollout)
    return rollout


def _wish(percent: str, labels: list[str], max_failures: int, patience: str) -> Rollout:
    """Returns what is wished, without its bundles."""
    import secrets
    import time

    from edgefed.cli.quantities import seconds
    from edgefed.coordinator.rollout import Rollout
    from edgefed.coordinator.roster import parse_labels

    return Rollout(
        id=secrets.token_hex(8),
        bundles=(),
        stages=_stages(percent),
        labels=parse_labels(labels),
        max_failures=max_failures,
        patience_s=seconds(patience, "--patience"),
        began_unix_s=time.time(),
    )


def _stages(text: str) -> tuple[int, ...]:
    from edgefed.errors import ConfigError

    try:
        stages = tuple(int(part) for part in text.split(","))
    except ValueError:
        stages = ()
    if not stages or list(stages) != sorted(set(stages)) or not 1 <= stages[0] <= stages[-1] <= 100:
        raise ConfigError(f"--percent is {text!r}; it must be growing whole numbers from 1 to 100, such as 10,50,100")
    return stages


def _begin(
    options: FederationOptions,
    run: Path,
    release: list[Path],
    wish: Rollout,
    wheels_for: tuple[str, str, str],
    *,
    ask: bool,
) -> Rollout:
    """Puts the bundles where the aggregator finds them, says what is wished, and returns it; or what is so already."""
    from msgspec.structs import replace

    from edgefed.cli.fleet_release import drop_others, laid_out
    from edgefed.coordinator.rollout_desk import read_progress, read_rollout, write_rollout
    from edgefed.errors import UpdateError

    bundles = laid_out(options, run, release, wheels_for, wish.labels)
    before = read_rollout(run)
    if before is not None and not before.stopped and read_progress(run, before).outcome in ("", "done"):
        if {one.contents for one in before.bundles} == {one.contents for one in bundles}:
            drop_others(run, before)
            return before
        if not read_progress(run, before).outcome:
            raise UpdateError(
                f"release {before.bundles[0].name} is on its way still: wait for it, or end it with "
                "`edgefed fleet update --stop`"
            )
    rollout = replace(wish, bundles=bundles)
    if ask:
        typer.confirm(f"{_words(run, rollout)}. Go on?", abort=True, err=True)
    write_rollout(run, rollout)
    drop_others(run, rollout)
    return rollout


def _words(run: Path, rollout: Rollout) -> str:
    from edgefed.cli.fleet_release import candidates
    from edgefed.coordinator.rollout import fitting

    known = candidates(run)
    fit = sum(fitting(rollout, one) is not None for one in known.values())
    stages = ", ".join(f"{stage} %" for stage in rollout.stages)
    first = rollout.bundles[0]
    return f"release {first.name} (edgefed {first.version}) for {fit} of {len(known)} devices, in stages of {stages}"


def _make_only(
    options: FederationOptions,
    run: Path,
    release: list[Path],
    output: Path,
    architecture: str,
    python: str,
    name: str,
    labels: list[str],
) -> None:
    from edgefed.cli.fleet_release import bundle_wheels
    from edgefed.cli.output import told_where
    from edgefed.coordinator.roster import parse_labels
    from edgefed.errors import ConfigError

    if len(release) != 1 or not release[0].is_dir():
        raise ConfigError("--output makes a bundle: name one directory of wheels")
    with told_where(output):
        made = bundle_wheels(options, run, release[0], output, (architecture, python, name), parse_labels(labels))
    typer.echo(
        f"wrote {output}: release {made.release.name} for {made.release.architecture}, Python {made.release.python}"
    )
