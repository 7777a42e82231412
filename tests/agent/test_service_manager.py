"""What systemd is told, on a real datagram socket: by the parts, and by an agent's process from start to SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefed.agent.service_manager import ServiceManager, service_manager
from tools.mosquitto import RunningMosquitto, free_port

PATIENCE_S = 60.0


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(PATIENCE_S)
        yield end


def heard(end: socket.socket) -> list[str]:
    return end.recv(4096).decode().split("\n")


def everything_heard(end: socket.socket) -> list[list[str]]:
    """What lies in the queue."""
    end.setblocking(False)
    datagrams = []
    with contextlib.suppress(BlockingIOError):
        while True:
            datagrams.append(heard(end))
    return datagrams


async def test_ready_alive_stopping_in_this_order(listener: socket.socket) -> None:
    manager = ServiceManager(listener.getsockname(), watchdog_s=0.03)
    said = []
    async with manager.informed():
        for _ in range(10):
            await asyncio.sleep(0.02)
            said += everything_heard(listener)  # the queue of such a socket is short
    said += everything_heard(listener)
    assert said[0] == ["READY=1"]
    assert said[-1] == ["STOPPING=1", "WATCHDOG=1"]
    assert said[1:-1] == [["WATCHDOG=1"]] * len(said[1:-1])
    assert len(said) > 4


async def test_a_blocked_loop_gives_no_sign_of_life(listener: socket.socket) -> None:
    import time

    async with ServiceManager(listener.getsockname(), watchdog_s=0.03).informed():
        await asyncio.sleep(0)
        everything_heard(listener)
        time.sleep(0.2)  # noqa: ASYNC251  # what a hang does
        assert everything_heard(listener) == []


async def test_without_a_watchdog_nothing_beats(listener: socket.socket) -> None:
    async with ServiceManager(listener.getsockname()).informed():
        await asyncio.sleep(0.05)
    assert everything_heard(listener) == [["READY=1"], ["STOPPING=1", "WATCHDOG=1"]]


async def test_without_a_service_manager_nothing_is_sent() -> None:
    manager = service_manager({})
    assert not manager.tell("READY=1")
    async with manager.informed():
        assert manager.watchdog_s is None


def test_an_abstract_socket_is_reached() -> None:
    name = f"edgefed-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"\0{name}")
        end.settimeout(PATIENCE_S)
        assert service_manager({"NOTIFY_SOCKET": f"@{name}"}).tell("READY=1")
        assert heard(end) == ["READY=1"]


def test_a_service_manager_that_is_gone_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not ServiceManager(str(tmp_path / "nobody")).tell("READY=1")
    assert "does not hear READY=1" in caplog.text


@pytest.mark.parametrize(
    ("watchdog", "expected_s"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_environment_says_who_watches(watchdog: dict[str, str], expected_s: float | None) -> None:
    environment = {"NOTIFY_SOCKET": "/run/notify", "PATH": "/bin", **watchdog}
    assert service_manager(environment).watchdog_s == expected_s
    assert environment == {"PATH": "/bin"}, "the worker must not speak for the agent"


def agent(directory: Path, port: int, notify: str) -> subprocess.Popen[str]:
    (directory / "data.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n')
    config = directory / "agent.toml"
    config.write_text(
        f'device = "one"\nfleet = "test"\n[data]\npath = "data.jsonl"\n[broker]\nport = {port}\n'
        '[profile]\nmeasure = "quick"\n'
    )
    environment = {**os.environ, "NOTIFY_SOCKET": notify, "WATCHDOG_USEC": "600000"}
    command = [sys.executable, "-m", "edgefed", "-v", "agent", "--config", str(config)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("with_broker", [True, False])
def test_an_agents_process_is_a_service(
    tmp_path: Path, listener: socket.socket, mosquitto: RunningMosquitto, with_broker: bool
) -> None:
    process = agent(tmp_path, mosquitto.port if with_broker else free_port(), listener.getsockname())
    try:
        assert heard(listener) == ["READY=1"]
        assert [heard(listener), heard(listener)] == [["WATCHDOG=1"]] * 2
        process.send_signal(signal.SIGTERM)
        while (said := heard(listener)) == ["WATCHDOG=1"]:
            pass
        assert said == ["STOPPING=1", "WATCHDOG=1"]
        _, log = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, log
    finally:
        process.kill()
        process.communicate()
