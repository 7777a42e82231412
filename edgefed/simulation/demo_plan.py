"""What the demo runs: six devices that play boards, with topics of their own, as the files that users write."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edgefed.data.partition import by_key
from edgefed.errors import ConfigError

__all__ = ["DEVICES", "DemoDevice", "DemoPlan", "prepare_directory", "write_plan"]

FLEET = "demo"
_MARKER = ".edgefed-demo"


@dataclass(frozen=True, slots=True)
class DemoDevice:
    """One device of the demo.

    Attributes:
        name: its id.
        board: that it plays.
        emulate: lines of its `[emulate]` table: what the board has less of than its sheet says.
        limits: lines of its `[limits]` table: what its owner says.
    """

    name: str
    board: str
    emulate: str = ""
    limits: str = ""


DEVICES = (
    DemoDevice("clinic-nano", "jetson-nano-4gb", emulate="uplink_bits_per_s = 40_000"),
    DemoDevice("depot-pi", "raspberry-pi-5-8gb", emulate="uplink_bits_per_s = 10_000 # a radio for sensors"),
    DemoDevice(
        "garage-nano",
        "jetson-orin-nano-4gb",
        emulate="memory_available_bytes = 2_320_000_000 # a camera has the rest\nuplink_bits_per_s = 20_000",
    ),
    DemoDevice("hotel-nx", "jetson-xavier-nx-8gb", limits='quantization = "nf4"'),
    DemoDevice("office-orin", "jetson-agx-orin-64gb"),
    DemoDevice("shop-nx", "jetson-orin-nx-16gb", limits="max_rank = 8"),
)
"""Slow links, little memory, and owners with a word of their own: every plan has another reason."""

RANKS = (2, 4, 8, 16)
DEADLINE_S = 120


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """Where the demo's files are, and how much is trained.

    Attributes:
        directory: of everything.
        port: of the broker.
        rounds: of the federation.
        local_steps: optimizer steps per device and round.
        devices: who takes part.
    """

    directory: Path
    port: int
    rounds: int
    local_steps: int = 10
    devices: Sequence[DemoDevice] = DEVICES

    @property
    def federation(self) -> Path:
        """The federation.toml."""
        return self.directory / "federation.toml"

    @property
    def run(self) -> Path:
        """The aggregator's directory."""
        return self.directory / "run"

    @property
    def adapter(self) -> Path:
        """The federation's adapter: of the round that the devices found best."""
        return self.run / "adapter-best"

    @property
    def held_out(self) -> Path:
        """The dialogues that no device has."""
        return self.directory / "held-out.jsonl"

    def agent(self, device: DemoDevice) -> Path:
        """A device's agent.toml."""
        return self.directory / "devices" / device.name / "agent.toml"

    def data(self, device: DemoDevice) -> Path:
        """A device's dialogues."""
        return self.directory / "devices" / device.name / "dialogues.jsonl"


def prepare_directory(directory: Path) -> None:
    """Makes an empty directory for a demo; one that an earlier demo made is emptied first.

    Raises:
        ConfigError: there is something else in it, or it cannot be made.
    """
    try:
        if directory.exists() and any(directory.iterdir()) and not (directory / _MARKER).is_file():
            raise ConfigError(f"{directory} has other things in it; name another place with --directory")
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        (directory / _MARKER).touch()
    except OSError as error:
        raise ConfigError(f"{directory} cannot be used for the demo: {error}") from error


def write_plan(plan: DemoPlan) -> dict[str, Counter[str]]:
    """Writes data and configuration of every device, and returns how many dialogues of each topic a device got."""
    assets = Path(str(resources.files("edgefed.assets"))) / "dialogues"
    rows = [json.loads(line) for line in (assets / "train.jsonl").read_text().splitlines()]
    shutil.copyfile(assets / "held_out.jsonl", plan.held_out)
    shares = by_key([row["topic"] for row in rows], len(plan.devices))
    topics: dict[str, Counter[str]] = {}
    for device, share in zip(plan.devices, shares, strict=True):
        plan.agent(device).parent.mkdir(parents=True)
        lines = [json.dumps(rows[index], ensure_ascii=False) for index in share]
        plan.data(device).write_text("\n".join(lines) + "\n", encoding="utf-8")
        text = _AGENT.format(device=device, fleet=FLEET, port=plan.port)
        plan.agent(device).write_text(text, encoding="utf-8")
        topics[device.name] = Counter(rows[index]["topic"] for index in share)
    text = _FEDERATION.format(
        fleet=FLEET,
        port=plan.port,
        rounds=plan.rounds,
        steps=plan.local_steps,
        ranks=list(RANKS),
        devices=len(plan.devices),
        deadline_s=DEADLINE_S,
    )
    plan.federation.write_text(text, encoding="utf-8")
    return topics


_AGENT = """\
device = "{device.name}"
fleet = "{fleet}"
state = "state"

[broker]
port = {port}

[data]
path = "dialogues.jsonl"

[limits]
threads = 1
{device.limits}

[emulate]
board = "{device.board}"
{device.emulate}

[profile]
measure = "quick"
"""

_FEDERATION = """\
fleet = "{fleet}"
rounds = {rounds}
directory = "run"

[model]
name = "edgefed/tiny-t5"

[task]
source = "dialogue"
target = "summary"
prompt = "summarize: {{source}}"
max_source_tokens = 192
max_target_tokens = 64

[method]
target_modules = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]
ranks = {ranks}

[training]
local_steps = {steps}
batch_size = 8
learning_rate = 5e-3

[evaluation]
max_examples = 24

[selection]
expected_devices = {devices}
quorum = {devices}
gather_s = 120
deadline_s = {deadline_s}

[broker]
port = {port}
"""
