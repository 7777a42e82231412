"""Record what edgefed's device readers look at on this machine, for a bug report or a test.

    sudo python -m tools.capture_sysfs my-board.tar.gz

The archive holds copies of small files of /proc, /sys and /etc under their own names, and what vcgencmd says on a
Raspberry Pi. Serial numbers, UUIDs and MAC addresses are taken out. Nothing is changed, and nothing is sent anywhere:
look at what it prints, then attach the archive. Without root it works too, less the counters that only root may read.
Unpacked under tests/fixtures/sysfs/<board>/, it is a machine that the tests can ask.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from edgefed.devices.programs import Run, run_program
from edgefed.devices.sysfs import board_model, read_text

FILES = (
    # the board and its system
    "proc/device-tree/model",
    "proc/device-tree/compatible",
    "sys/firmware/devicetree/base/model",
    "sys/devices/virtual/dmi/id/product_name",
    "proc/sys/kernel/osrelease",
    "etc/nv_tegra_release",
    "etc/nvpmodel.conf",
    "var/lib/nvpmodel/status",
    # processor and GPU
    "proc/cpuinfo",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq",
    "proc/driver/nvidia/version",
    "proc/driver/nvidia/gpus/*/information",
    "sys/class/devfreq/*/cur_freq",
    "sys/class/devfreq/*/min_freq",
    "sys/class/devfreq/*/max_freq",
    "sys/class/devfreq/*/device/load",
    *(
        f"sys/devices/{parent}{node}/load"
        for parent in ("", "platform/", "platform/bus@0/")
        for node in ("gpu.0", "*.gpu", "*.gp10b", "*.gv11b", "*.ga10b")
    ),
    # heat
    "sys/class/thermal/thermal_zone*/type",
    "sys/class/thermal/thermal_zone*/temp",
    "sys/class/thermal/cooling_device*/type",
    "sys/class/thermal/cooling_device*/cur_state",
    # power
    "sys/class/hwmon/hwmon*/name",
    "sys/class/hwmon/hwmon*/label",
    "sys/class/hwmon/hwmon*/in*_label",
    "sys/class/hwmon/hwmon*/in*_input",
    "sys/class/hwmon/hwmon*/curr*_label",
    "sys/class/hwmon/hwmon*/curr*_input",
    "sys/class/hwmon/hwmon*/power*_label",
    "sys/class/hwmon/hwmon*/power*_input",
    "sys/class/hwmon/hwmon*/power*_average",
    "sys/class/hwmon/hwmon*/energy*_label",
    "sys/class/hwmon/hwmon*/energy*_input",
    "sys/bus/i2c/drivers/ina3221x/*/iio*device*/name",
    "sys/bus/i2c/drivers/ina3221x/*/iio*device*/rail_name_*",
    "sys/bus/i2c/drivers/ina3221x/*/iio*device*/in_power*_input",
    "sys/class/powercap/intel-rapl:*/name",
    "sys/class/powercap/intel-rapl:*/energy_uj",
    "sys/class/powercap/intel-rapl:*/max_energy_range_uj",
    "sys/class/power_supply/*/type",
    "sys/class/power_supply/*/scope",
    "sys/class/power_supply/*/status",
    "sys/class/power_supply/*/online",
    "sys/class/power_supply/*/capacity",
    "sys/class/power_supply/*/power_now",
    "sys/class/power_supply/*/voltage_now",
    "sys/class/power_supply/*/current_now",
    "vcgencmd/*.txt",  # of a tree that was recorded before
)
"""Every file that a reader looks at, as patterns under the root; a test holds this table against the readers."""

COMMANDS = ("pmic_read_adc", "get_throttled")
"""What vcgencmd is asked; its answers become vcgencmd/COMMAND.txt."""

_MAC = re.compile(r"(?<![0-9A-Fa-f])(?:[0-9A-Fa-f]{2}[:_-]){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f])")
_NO_MAC = "00:00:00:00:00:00"
_IDENTITY = re.compile(r"^\s*(?:serial|(?:gpu )?uuid)\b.*(?:\n|$)", re.IGNORECASE | re.MULTILINE)


@dataclass
class Capture:
    """Texts by their path under the root, and the files that were there and did not answer, with the reason."""

    texts: dict[str, str] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)


def capture(root: Path, run: Run | None) -> Capture:
    """Return copies of what the readers look at under a root, without what identifies the machine or its owner.

    Args:
        root: the file system to look at.
        run: asks vcgencmd; None on another machine's recorded files.
    """
    taken = Capture()
    for path in _files(root):
        name = without_identity(path.relative_to(root).as_posix())
        try:
            taken.texts[name] = without_identity(path.read_text(errors="replace"))
        except OSError as error:
            taken.silent[name] = error.strerror or str(error)
    if run is not None and board_model(root).startswith("Raspberry Pi"):
        _ask(run, taken)
    return taken


def without_identity(text: str) -> str:
    """Return a text without its lines of serial numbers and UUIDs, and with zeros for MAC addresses."""
    return _MAC.sub(_NO_MAC, _IDENTITY.sub("", text))


def write_archive(taken: Capture, about: str, output: Path) -> None:
    """Write a gzipped tar of the texts; owners, times and modes of the machine are not in it."""
    members = {**taken.texts, "README.md": about}
    with tarfile.open(output, "x:gz") as archive:
        for name in sorted(members):
            content = members[name].encode()
            member = tarfile.TarInfo(str(PurePosixPath(name)))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def main() -> int:
    """Record this machine, or a tree, and print what was taken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT.tar.gz", help="archive to write; it must not exist yet")
    parser.add_argument("--root", type=Path, default=Path("/"), help="file system to record (default: this machine's)")
    options = parser.parse_args()
    taken = capture(options.root, run_program if options.root == Path("/") else None)
    if not taken.texts:
        print(f"there is nothing under {options.root} that a reader looks at", file=sys.stderr)
        return 1
    board = board_model(options.root) or "a machine without a device tree"
    kernel = read_text(options.root / "proc/sys/kernel/osrelease") or "of unknown version"
    try:
        write_archive(taken, f"Recorded from {board}, kernel {kernel}, by tools.capture_sysfs.\n", options.output)
    except OSError as error:
        print(f"cannot write {options.output}: {error.strerror}", file=sys.stderr)
        return 1
    for name in sorted(taken.texts):
        print(name)
    for name, reason in sorted(taken.silent.items()):
        print(f"{name}: left out ({reason})", file=sys.stderr)
    print(f"{options.output}: {len(taken.texts)} files, {len(taken.silent)} left out", file=sys.stderr)
    return 0


def _ask(run: Run, taken: Capture) -> None:
    for command in COMMANDS:
        name, said = f"vcgencmd/{command}.txt", run(("vcgencmd", command))
        if said is None:
            taken.silent[name] = "vcgencmd is missing or failed"
        else:
            taken.texts[name] = without_identity(said)


def _files(root: Path) -> Iterator[Path]:
    for pattern in FILES:
        yield from sorted(path for path in root.glob(pattern) if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
