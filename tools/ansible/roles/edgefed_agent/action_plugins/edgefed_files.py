"""Puts the files of edgefed's agent onto a board: what `edgefed flash ssh` writes, by the same code, over Ansible.

It runs where the playbook runs, so edgefed must be installed beside Ansible there; the board needs no more than a shell
until its agent starts. What is sent goes through standard input, which Ansible logs at no level.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

try:
    from edgefed.cli.flash_options import Asked
    from edgefed.errors import EdgefedError, FlashError
    from edgefed.flashing.board import inspect
    from edgefed.flashing.changes import Changes, compare
    from edgefed.flashing.manifest import RECORD, WHEELHOUSE, manifest
    from edgefed.flashing.remote import answer, command_line
    from edgefed.flashing.ssh import write
    from edgefed.flashing.ssh_tree import SshTree
    from edgefed.flashing.tree import follow
except ImportError as missing:
    raise AnsibleActionFail(f"edgefed is not installed beside Ansible ({missing}): pip install edgefed there") from None

_TEXTS = ("device", "fleet", "broker", "username", "data", "wifi")
_FILES = ("password_file", "ca", "certificate", "key", "config", "wifi_password_file")


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action of the role's first task."""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns Ansible's result, with what was written and what the handlers have to know."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        host = (task_vars or {}).get("inventory_hostname", "the board")
        _, options = self.validate_argument_spec(
            argument_spec={
                "wheelhouse": {"type": "str", "required": True},
                **{name: {"type": "str", "default": ""} for name in (*_TEXTS, *_FILES)},
            }
        )
        if not self._connection.has_pipelining:
            raise AnsibleActionFail(f"{host}: connection {self._connection.transport} does not carry standard input")
        try:
            changes = self._flash(_AnsibleShell(self, host), options)
        except EdgefedError as error:
            raise AnsibleActionFail(str(error)) from error
        return result | _told(changes, diff=self._task.diff)

    def _flash(self, shell: _AnsibleShell, options: Mapping[str, str]) -> Changes:
        shell.check_root()
        tree = SshTree(shell)
        board = inspect(tree)
        with self._asked(options) as asked:
            wanted = manifest(asked.installation(board), board)
        # Whoever runs a playbook again wants what it says now.
        changes = compare(tree, wanted, upgrade=tree.lookup(follow(tree, RECORD)) is not None)
        if not self._task.check_mode:
            write(shell, tree, changes)
        return changes

    @contextlib.contextmanager
    def _asked(self, options: Mapping[str, str]) -> Iterator[Asked]:
        """Gives what is asked for; files are found as Ansible finds them, and may be encrypted by ansible-vault."""
        found: dict[str, Path | None] = dict.fromkeys(_FILES)
        try:
            for name in _FILES:
                if options[name]:
                    found[name] = Path(self._loader.get_real_file(self._find_needle("files", options[name])))
            texts: dict[str, Any] = {name: options[name] for name in _TEXTS} | {"wifi": options["wifi"] or None}
            wheelhouse = Path(self._find_needle("files", options["wheelhouse"]))
            yield Asked(wheelhouse=wheelhouse, **texts, **found)
        finally:
            self._loader.cleanup_all_tmp_files()


class _AnsibleShell:
    """The board's shell, through the connection and the become method that Ansible was told of."""

    alive = True  # what cannot be reached ends the action by another exception than ours

    def __init__(self, action: ActionBase, host: str) -> None:
        self.host = host
        self._action = action

    def check_root(self) -> None:
        """Refuses to go on as somebody else.

        Raises:
            FlashError: the task does not run as root.
        """
        if self.run("id -u").strip() != b"0":
            raise FlashError(f"{self.host}: only root can put the agent there: add `become: true` to the play")

    def run(self, script: str, *arguments: str, stdin: bytes = b"") -> bytes:
        """Returns what a script writes; see `edgefed.flashing.remote.Shell`."""
        if not stdin:
            # With nothing to send, Ansible's ssh would give the script a terminal, which changes what it writes.
            script, stdin = f"exec < /dev/null\n{script}", b"\n"
        done = self._action._low_level_execute_command(
            command_line(script, arguments), in_data=stdin, encoding_errors="surrogateescape"
        )
        result = answer(done["stdout"].encode(errors="surrogateescape"))
        if done["rc"] != 0 or result is None:
            raise FlashError(f"{self.host}: {done['stderr'].strip() or 'its shell runs no commands'}")
        return result

    def send(self, script: str, *arguments: str, blocks: Iterable[bytes]) -> None:
        """Runs a script that reads much; see `edgefed.flashing.remote.Shell`."""
        self.run(script, *arguments, stdin=b"".join(blocks))


def _told(changes: Changes, *, diff: bool) -> dict[str, Any]:
    """Returns what Ansible is told of the changes."""
    written = [file.path for file in changes.write]
    told: dict[str, Any] = {
        "changed": not changes.is_empty,
        "written": written,
        "removed": list(changes.remove),
        "kept": list(changes.kept),
        "builds_environment": any(WHEELHOUSE in path for path in written),
        "enabled_units": sorted(PurePosixPath(link.path).name for link in changes.links),
    }
    if diff and not changes.is_empty:
        lines = [f"write {file.path} ({file.mode:04o}, {file.size_bytes} bytes)" for file in changes.write]
        lines += [f"link {link.path} to {link.target}" for link in changes.links]
        lines += [f"remove {path}" for path in changes.remove]
        told["diff"] = {"prepared": "".join(f"{line}\n" for line in lines)}
    return told
