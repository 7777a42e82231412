from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import paho.mqtt.publish
import pytest


@contextmanager
def broker(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`edgefed broker` as a process, and the first line it printed."""
    with subprocess.Popen(
        [sys.executable, "-m", "edgefed", "broker", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_serves_until_it_is_stopped(number: signal.Signals, code: int) -> None:
    with broker("--port", "0") as (process, line):
        place = line.removeprefix("listening on ").partition(";")[0]
        host, _, port = place.partition(":")
        assert host == "127.0.0.1"
        paho.mqtt.publish.single("a", b"x", qos=1, hostname=host, port=int(port))
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (code, "", "")


def test_port_that_is_taken() -> None:
    with broker("--port", "0") as (_, line):
        port = line.partition(";")[0].rpartition(":")[2]
        second = subprocess.run(
            [sys.executable, "-m", "edgefed", "broker", "--port", port], capture_output=True, text=True, check=False
        )
        assert second.returncode == 6
        assert second.stderr.startswith(f"edgefed: a broker cannot listen on 127.0.0.1:{port}: ")
        assert "Traceback" not in second.stderr
