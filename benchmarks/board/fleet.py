"""The other side, on the host: a fleet's directory, its broker, who admits boards, and the aggregator."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.mosquitto import RunningMosquitto, configured_mosquitto, free_port

__all__ = ["DEVICE", "FLEET", "HostSide"]

FLEET = "desk"
DEVICE = "board-arm64"
HOST_SEEN_BY_BOARD = "10.0.2.2"
ROUNDS = 2

_FEDERATION = """\
fleet = "{fleet}"
rounds = {rounds}
directory = "{directory}/run"

[model]
name = "edgefed/tiny-t5"

[task]
source = "dialogue"
target = "summary"
prompt = "summarize: {{source}}"
max_source_tokens = 192
max_target_tokens = 64

[method]
ranks = [2, 4, 8, 16]

[training]
local_steps = 4
batch_size = 4
learning_rate = 5e-3

[evaluation]
max_examples = 8

[selection]
expected_devices = 1
quorum = 1
gather_s = 900
deadline_s = 1800

[broker]
host = "127.0.0.1"
port = {port}
tls_ca = "{identity}/ca.pem"
tls_certificate = "{identity}/certificate.pem"
tls_key = "{identity}/key.pem"
"""


class HostSide:
    """A fleet on this machine that the board reaches over the virtual network.

    Attributes:
        port: of the broker.
        token: file of the board's claim token.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self.port = free_port()
        self.fleet = directory / "fleet"
        self.token = directory / "board.token"
        hosts = ["--broker-host", HOST_SEEN_BY_BOARD, "--broker-host", "127.0.0.1"]
        self.edgefed("fleet", "init", self.fleet, "--name", FLEET, *hosts)
        self.edgefed("fleet", "token", "board-*", "--fleet", self.fleet, "--output", self.token)
        self.edgefed("fleet", "enroll", "observer:desk", "--fleet", self.fleet)

    @property
    def broker_of_board(self) -> str:
        """What the board's agent.toml says."""
        return f"{HOST_SEEN_BY_BOARD}:{self.port}"

    def edgefed(self, *arguments: object) -> str:
        """Runs a command and returns what it wrote."""
        command = [sys.executable, "-m", "edgefed", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"edgefed {' '.join(map(str, arguments[:2]))} failed: {done.stderr}")
        return done.stdout

    @contextlib.contextmanager
    def broker(self) -> Iterator[RunningMosquitto]:
        """Runs Mosquitto with the generated configuration, and `fleet admit`, which tells it of new devices."""
        config = self.directory / "broker"
        write = ["fleet", "broker-config", "mosquitto", "--fleet", self.fleet, "-o", config]
        write += ["--bind", "127.0.0.1", "--port", self.port]  # the virtual network leads there
        self.edgefed(*write)
        with configured_mosquitto(config / "mosquitto.conf", self.port) as broker:
            tell = f"{sys.executable} -m edgefed {' '.join(map(str, write))} && kill -HUP {broker.pid}"
            admit = ["fleet", "admit", "--fleet", self.fleet, "--host", "127.0.0.1", "--port", self.port]
            with self.running("admit", *admit, "--allow", "board-*", "--then", tell):
                yield broker
            shutil.copy(broker.log_path, self.directory / "mosquitto.log")

    @contextlib.contextmanager
    def aggregator(self) -> Iterator[subprocess.Popen[bytes]]:
        """Runs the federation."""
        config = self.directory / "federation.toml"
        identity = self.fleet / "aggregator"
        config.write_text(
            _FEDERATION.format(fleet=FLEET, rounds=ROUNDS, port=self.port, identity=identity, directory=self.directory)
        )
        with self.running("aggregator", "-v", "aggregator", "--config", config) as process:
            yield process

    @contextlib.contextmanager
    def running(self, name: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
        """Runs a command for the length of the block, with its output in a file."""
        command = [sys.executable, "-m", "edgefed", *map(str, arguments)]
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ))
        try:
            yield process
        finally:
            process.terminate()
            process.wait()

    def device(self) -> dict[str, Any] | None:
        """Returns the board as the broker knows it: its state and its profile; None before it was there."""
        looking = ["--host", "127.0.0.1", "--port", self.port, "--fleet", FLEET, "--wait-s", 0.5, "--json"]
        identity = self.fleet / "observers" / "desk"
        document = json.loads(self.edgefed("status", *looking, "--identity", identity))
        found: dict[str, Any] | None = document["devices"].get(DEVICE)
        return found

    def wait_for_device(self, condition: Callable[[dict[str, Any]], bool], patience_s: float) -> dict[str, Any]:
        """Returns the board once the condition holds.

        Raises:
            TimeoutError: it does not come to that.
        """
        until_s = time.monotonic() + patience_s
        found = None
        while time.monotonic() < until_s:
            found = self.device()
            if found is not None and condition(found):
                return found
            time.sleep(2)
        raise TimeoutError(f"the board does not come so far within {patience_s:g} s: {found and found['state']}")
