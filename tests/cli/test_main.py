from __future__ import annotations

import inspect
import logging
import re
import subprocess
import sys
from importlib import import_module

import pytest

from edgefed import __version__
from edgefed.cli import init, main
from edgefed.errors import ConfigError, EdgefedError, FederationFailed


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `edgefed <arguments>`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["edgefed", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes `edgefed init` fail with an error."""

    def command() -> None:
        """Fails."""
        raise error

    monkeypatch.setattr(init, "init", command)


class TestHelp:
    def test_lists_every_command(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(monkeypatch, "--help") == 0
        out = capsys.readouterr().out
        for name in main.COMMANDS:
            assert f"\n  {name} " in out

    @pytest.mark.parametrize("command", main.COMMANDS)
    def test_every_command_has_examples_as_written(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
    ) -> None:
        assert run(monkeypatch, command, "--help") == 0
        out = capsys.readouterr().out
        module, _, function = main.COMMANDS[command].partition(":")
        examples = (inspect.getdoc(getattr(import_module(module), function)) or "").partition("Examples:\n")[2]
        assert re.match(rf"  edgefed (-v+ )?{command}\b", examples)
        for line in examples.splitlines():
            assert line.strip() in out

    def test_loads_nothing_heavy(self) -> None:
        code = (
            "import sys\n"
            "from edgefed.cli.main import main\n"
            "sys.argv = ['edgefed', '--help']\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "heavy = {'numpy', 'torch', 'transformers', 'sqlalchemy', 'amqtt', 'paho', 'rich'}\n"
            "sys.exit(', '.join(heavy & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stderr.strip() == ""
        assert "Usage: edgefed" in done.stdout

    def test_without_a_command(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(monkeypatch) == 2
        assert "Commands:" in "".join(capsys.readouterr())

    def test_version(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(monkeypatch, "--version") == 0
        assert capsys.readouterr().out == f"edgefed {__version__}\n"


class TestExitCodes:
    def test_mistyped_command_is_corrected(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(monkeypatch, "inti") == 2
        assert "Did you mean 'init'?" in capsys.readouterr().err

    @pytest.mark.parametrize("error", [EdgefedError("so"), ConfigError("so"), FederationFailed("so")])
    def test_own_errors_are_messages(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: EdgefedError
    ) -> None:
        raising(monkeypatch, error)
        assert run(monkeypatch, "init") == error.exit_code
        assert capsys.readouterr() == ("", "edgefed: so\n")

    def test_interrupt(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        raising(monkeypatch, KeyboardInterrupt())
        assert run(monkeypatch, "init") == 130
        assert capsys.readouterr() == ("", "")

    def test_missing_extra_says_how_to_get_it(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        raising(monkeypatch, ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"))
        assert run(monkeypatch, "init") == 1
        assert "needs torch, which is not installed: pip install 'edgefed[train]'" in capsys.readouterr().err

    def test_mistakes_of_ours_keep_their_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        raising(monkeypatch, ModuleNotFoundError("No module named 'edgefed.nothing'", name="edgefed.nothing"))
        monkeypatch.setattr(sys, "argv", ["edgefed", "init"])
        with pytest.raises(ModuleNotFoundError):
            main.main()

    def test_reader_that_went_away_is_not_worth_a_message(self) -> None:
        """The output of `--help` meets a pipe whose other end is closed."""
        command = [sys.executable, "-m", "edgefed", "--help"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 1


@pytest.mark.parametrize(
    ("flags", "level"), [((), logging.WARNING), (("-v",), logging.INFO), (("-vvv",), logging.DEBUG)]
)
def test_verbosity(monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], level: int) -> None:
    raising(monkeypatch, EdgefedError("so"))
    run(monkeypatch, *flags, "init")
    root = logging.getLogger()
    assert root.level == level
    assert sys.stderr in [handler.stream for handler in root.handlers if isinstance(handler, logging.StreamHandler)]
