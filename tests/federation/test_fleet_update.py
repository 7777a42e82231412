"""A release goes over a real fleet: signed, over mutual TLS, beside the rounds; only the installer is stood in for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from edgefed.coordinator.rollout import OfferedBundle, Rollout, in_order
from edgefed.coordinator.rollout_desk import write_rollout
from edgefed.coordinator.sightings import read_sightings
from edgefed.files import hash_file
from edgefed.security.identities import AGGREGATOR
from edgefed.security.signatures import read_signer, read_verifier
from edgefed.updates.bundle import Bundle, make_bundle, open_bundle
from edgefed.updates.places import Home, incoming
from edgefed.updates.record import Record, read_record, write_record
from edgefed.updates.release import Outcome, Result
from tests.faults.proxy import FaultProxy
from tests.federation.stand_in import federation_toml, make_paper_model
from tests.federation.test_aggregator import Run
from tests.security.secured import NAME, Secured, device, tls
from tests.updates import releases

pytestmark = [pytest.mark.broker, pytest.mark.federation]
PATIENCE_S = 90.0
FIRST, SECOND = sorted(("one", "two"), key=in_order)
WHEEL_BYTES = 1_500_000
BYTES_PER_S = 500_000.0

AGENT = """\
device = "{name}"
fleet = "{fleet}"
state = "{directory}/{name}"
[data]
path = "{directory}/data.jsonl"
[profile]
measure = "quick"
[limits]
max_rank = 2
quantization = "fp32"
[broker]
"""


def broker_lines(secured: Secured, who: Any, port: int) -> str:
    files = tls(secured.fleet.place(who))
    files["tls_certificate"] = files.pop("tls_cert")
    lines = "".join(f'{key} = "{value}"\n' for key, value in files.items())
    return f'host = "127.0.0.1"\nport = {port}\nsigned = true\nkeepalive_s = 5\n{lines}'


class Board:
    """One agent, and who stands in for its installer."""

    def __init__(self, directory: Path, name: str, lines: str) -> None:
        self.name = name
        self.config = directory / f"{name}.toml"
        self.config.write_text(AGENT.format(name=name, fleet=NAME, directory=directory) + lines)
        self.state = directory / name
        self.log = directory / f"{name}.log"
        self.home = Home(directory / f"{name}-home")
        self.home.updates.mkdir(parents=True)
        self.outcomes: dict[str, Outcome] = {}
        self.installed: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "tests.federation.updating_agent", str(self.config), str(self.home.path)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def install_what_has_come(self, ca: Path) -> None:
        """Does what an installer does as far as others see it: checks, ends the agent, writes it down, starts it."""
        for path in sorted(incoming(self.state).glob("*.bundle")):
            began_s = time.time()
            bundle = open_bundle(path, read_verifier(ca), fleet=NAME, now_unix_s=began_s)
            self.end()
            name = bundle.release.name
            outcome = self.outcomes.get(name, "installed")
            self.installed += [name] if outcome == "installed" else []
            before = read_record(self.home)
            good = outcome == "installed"
            result = Result(
                bundle=hash_file(path),
                file=path.name,
                release=name,
                number=bundle.release.number,
                outcome=outcome,
                reason="" if good else "the agent did not come up",
                began_unix_s=began_s,
                ended_unix_s=time.time(),
            )
            highest = max(before.highest_number, bundle.release.number if good else 0)
            write_record(self.home, Record(highest_number=highest, latest=bundle.id if good else "", result=result))
            path.unlink()
            self.start()


class World:
    """A signed fleet of two agents, the second behind a slow link."""

    def __init__(self, directory: Path, secured: Secured, proxy: FaultProxy) -> None:
        self.directory, self.secured, self.proxy = directory, secured, proxy
        (directory / "data.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n')
        model = make_paper_model(directory / "model")
        toml = federation_toml(
            model,
            directory / "run",
            secured.port,
            selection="quorum = 1\ngather_s = 1\ndeadline_s = 30\n",
            transfers="chunk_bytes = 16384\n",
        ).replace(f"port = {secured.port}\n", broker_lines(secured, AGGREGATOR, secured.port))
        self.run = Run(directory, toml.replace("rounds = 3", "rounds = 100000"))
        ports = {FIRST: secured.port, SECOND: proxy.port}
        self.boards = {
            name: Board(directory, name, broker_lines(secured, device(name), port)) for name, port in ports.items()
        }

    def update(self, *words: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "edgefed", "fleet", "update", *map(str, words), "-c", str(self.run.config)]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Whoever runs the tests in the background has it ignored, and it would stay so.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    async def ended(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, err = await asyncio.to_thread(process.communicate, timeout=PATIENCE_S)
        return process.returncode, out, err

    async def progress(self) -> dict[str, Any]:
        _, out, _ = await self.ended(self.update("--no-wait", "--json"))
        progress: dict[str, Any] = json.loads(out)["progress"]
        return progress

    def release(self, name: str, number: int, **changes: Any) -> Bundle:
        wheel = self.directory / f"{name}-1.0-py3-none-any.whl"
        wheel.write_bytes(os.urandom(changes.pop("wheel_bytes", 20_000)))
        place = self.secured.fleet.place(AGGREGATOR)
        settings = {
            "fleet": NAME,
            "name": name,
            "number": number,
            "version": "1.0",
            "architecture": platform.machine(),
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
            "lock": b"edgefed==1.0 --hash=sha256:0\n",
            "signer": read_signer(place / "certificate.pem", place / "key.pem"),
            "at_unix_s": time.time(),
        }
        return make_bundle(self.directory / f"{name}.bundle", wheels=[wheel], **{**settings, **changes})

    async def until(self, what: str, holds: Callable[[], bool]) -> None:
        for _ in range(int(PATIENCE_S / 0.02)):
            if holds():
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"{what} does not come:\n{self.logs()}")

    def knows_both(self) -> bool:
        """Whether the aggregator has heard what both boards are."""
        return sum(bool(one.architecture) for one in read_sightings(self.run.directory).values()) == len(self.boards)

    def logs(self) -> str:
        logs = (self.run.log, *(board.log for board in self.boards.values()))
        return "\n".join(f"--- {log.name}\n{log.read_text()[-5000:]}" for log in logs if log.exists())

    async def look_after(self) -> None:
        """Is both boards' installer."""
        ca = self.secured.fleet.place(AGGREGATOR) / "ca.pem"
        while True:
            for board in self.boards.values():
                await asyncio.to_thread(board.install_what_has_come, ca)
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    secured = Secured(tmp_path)
    for name in (FIRST, SECOND):
        secured.enroll(device(name))
    with secured.running():
        async with FaultProxy(secured.port, seed=1, bytes_per_s=BYTES_PER_S) as proxy:
            made = World(tmp_path, secured, proxy)
            installing = asyncio.create_task(made.look_after())
            try:
                made.run.start()
                for board in made.boards.values():
                    board.start()
                await made.until("both", made.knows_both)
                yield made
            finally:
                installing.cancel()
                await asyncio.gather(installing, return_exceptions=True)
                made.run.end()
                for board in made.boards.values():
                    board.end()


async def test_a_release_goes_over_a_fleet_in_stages(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        # One that does not come up ends at the first stage.
        here.boards[FIRST].outcomes["bad"] = "rolled-back"
        bad = here.release("bad", 10)
        code, out, err = await here.ended(here.update(bad.path, "--percent", "50,100", "--yes"))
        assert code == 18, err + here.logs()
        assert f"1 failed, and none may: {FIRST} (rolled-back)" in err
        assert f"{FIRST}\trolled-back\t\tthe agent did not come up" in out
        assert SECOND not in out

        # One that does reaches both, though the watcher, the aggregator and the link go away in the middle.
        good = here.release("good", 11, wheel_bytes=WHEEL_BYTES)
        watching = here.update(good.path, "--percent", "50,100", "--yes")
        await here.until("the first stage", lambda: here.boards[FIRST].installed == ["good"])
        watching.send_signal(signal.SIGINT)
        assert (await here.ended(watching))[0] == 130
        assert here.run.process is not None
        here.run.process.kill()
        here.run.process.wait()
        here.run.start()
        received = (await _through_a_cut(here, good)) / good.path.stat().st_size
        code, out, err = await here.ended(here.update(good.path))
        assert (code, out.count("installed")) == (0, 2), err + here.logs()
        assert here.boards[SECOND].installed == ["good"]
        assert received <= 1.15

        # The same once more is the same, and shows it.
        code, out, _ = await here.ended(here.update(good.path, "--json"))
        assert (code, json.loads(out)["progress"]["outcome"]) == (0, "done")
        assert here.boards[FIRST].installed == ["good"]


async def _through_a_cut(here: World, bundle: Bundle) -> int:
    """Cuts the second board's link in the middle of its download; returns the bytes that came down over it."""
    arriving = here.boards[SECOND].state / "updates" / "arriving" / f"{hash_file(bundle.path)}.part"
    await here.until("the second stage", arriving.exists)
    before = here.proxy.down_bytes
    await here.until("the middle", lambda: here.proxy.down_bytes - before > WHEEL_BYTES // 2)
    here.proxy.cut()
    await here.until("the whole", lambda: not arriving.exists())
    return here.proxy.down_bytes - before


async def test_the_agent_takes_nothing_that_the_aggregator_has_not_signed(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        forged = here.release("forged", 12, signer=releases.SIGNER)
        code, _, err = await here.ended(here.update(forged.path, "--yes"))
        assert (code, "is no release of fleet test" in err) == (18, True)

        # Whoever has the aggregator's machine, but not its key, gets no further.
        sha256 = hash_file(forged.path)
        place = here.run.directory / "releases" / f"{sha256}.bundle"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(forged.path.read_bytes())
        offered = OfferedBundle(
            sha256=sha256,
            size_bytes=place.stat().st_size,
            name="forged",
            number=12,
            version="1.0",
            architecture=platform.machine(),
            python=f"3.{sys.version_info.minor}",
            lock_sha256=forged.release.lock.sha256,
        )
        wish = Rollout(id="forged", bundles=(offered,), stages=(100,), max_failures=2, began_unix_s=time.time())
        write_rollout(here.run.directory, wish)
        code, out, err = await here.ended(here.update())
        assert out.count("refused") == 2, err + here.logs()
        assert "is no release of fleet test" in out
        assert not any(board.installed or any(incoming(board.state).glob("*")) for board in here.boards.values())
