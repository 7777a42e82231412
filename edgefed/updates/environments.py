"""The Python environments of a home, by the same script that first boot uses: it needs no Python that works."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess

from edgefed.errors import DiskFull, UpdateError
from edgefed.files import hash_file, replace_file
from edgefed.updates.bundle import Bundle, unpack
from edgefed.updates.places import Home
from edgefed.updates.release import LOCK, MANIFEST

__all__ = ["Environments"]

_LINES = 5
_NO_SPACE = os.strerror(errno.ENOSPC)


class Environments:
    """What the agent is started from, and what takes its place.

    Args:
        home: where edgefed is installed.
    """

    def __init__(self, home: Home) -> None:
        self._home = home

    @property
    def in_use(self) -> str:
        """The name of the one in use."""
        return self._home.link.readlink().name

    def build(self, bundle: Bundle) -> str:
        """Builds the environment of a release beside the one in use, and returns its name.

        With it go the wheels, so that it can be built anew without the network, the release's document, which says what
        it is, and the hash of the flashed lock for which it stands.

        Raises:
            DiskFull: there is no room for it.
            UpdateError: it cannot be built, or the agent in it cannot be imported.
        """
        self.prune()
        wheels = self._home.updates / "wheels"
        shutil.rmtree(wheels, ignore_errors=True)
        try:
            unpack(bundle, wheels)
            replace_file(wheels / MANIFEST, [bundle.document])
            replace_file(wheels / "instead-of", [self._flashed().encode()])
            return self._run("build", str(wheels)).splitlines()[-1]
        except UpdateError as error:
            self.prune()  # a part of an environment is of no use, and takes room
            if _NO_SPACE in str(error):
                raise DiskFull(str(error)) from error
            raise
        finally:
            shutil.rmtree(wheels, ignore_errors=True)

    def try_out(self, name: str) -> None:
        """Has the agent started from another environment, with a way back.

        Raises:
            UpdateError: that cannot be done; nothing is changed.
        """
        self._run("try", name)

    def keep(self) -> None:
        """Gives up the way back: from now on the environment in use is the one that stays."""
        self._run("keep")

    def recover(self) -> None:
        """Goes the way back, where there is one."""
        self._run("recover")

    def prune(self) -> None:
        """Removes what is not in use and not on the way back."""
        self._run("prune")

    def _flashed(self) -> str:
        try:
            return hash_file(self._home.path / "wheelhouse" / LOCK)
        except OSError as error:
            raise UpdateError(f"{error.filename} cannot be read: flash this board again") from error

    def _run(self, *arguments: str) -> str:
        command = ["sh", str(self._home.path / "bin/environment"), str(self._home.path), *arguments]
        environment = {**os.environ, "LC_ALL": "C"}  # so that what is said of the disk can be told
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
        if done.returncode != 0:
            said = "; ".join(done.stderr.strip().splitlines()[-_LINES:])
            raise UpdateError(f"`environment {arguments[0]}` failed: {said or done.returncode}")
        return done.stdout
