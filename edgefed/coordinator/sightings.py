"""What the aggregator has last heard of each device: two kinds of small documents in the run's directory.

They are for whoever looks at the fleet (`edgefed fleet list`), also while no aggregator is running. Nothing depends on
them: the journal alone decides.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from edgefed.coordinator.run_directory import MAKE_ROOM, RunDirectory
from edgefed.devices.profile import DeviceProfile
from edgefed.devices.release_state import ReleaseState
from edgefed.errors import StoreError
from edgefed.files import replace_file
from edgefed.protocol.messages.manifest import Plan
from edgefed.protocol.messages.retained import DeviceState

__all__ = ["Sighting", "Sightings", "read_profile_of", "read_sightings"]

_log = logging.getLogger(__name__)

_SAVE_EVERY_S = 1.0
_PER_SECOND = 200
"""Of more devices than that, the document is written less often: it is one file."""
_MOST_PROFILE_BYTES = 32_768
_MOST_DEVICES = 10_000
"""On a broker that lets everybody in, anybody can make names up."""


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """One device.

    Attributes:
        seen_unix_s: when it was last heard, by the aggregator's wall clock.
        state: what it said it is doing; None where it has not said so yet.
        plan: what it last joined a round with.
        architecture, python: of the machine, from its profile; "" before there is one.
        release: what it says of the latest release that it was offered.
        busy: whether the aggregator waits for it, or still takes an update that it may be working on.
    """

    seen_unix_s: float
    state: DeviceState | None = None
    plan: Plan | None = None
    architecture: str = ""
    python: str = ""
    release: ReleaseState | None = None
    busy: bool = False


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    version: Literal[1] = 1
    devices: dict[str, Sighting] = {}


class Sightings:
    """Keeps account of devices, on disk every second where something has changed.

    Args:
        directory: of the run; what an earlier aggregator kept there is gone on with.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory
        self._devices: dict[str, Sighting] = {}
        try:
            self._devices = read_sightings(directory.path)
        except StoreError as error:  # they will be heard again
            _log.warning("%s", error)
        self._changed = False
        self._saved_at_s = 0.0

    def hear(self, device: str) -> None:
        """A device has said something."""
        self._keep(device, seen_unix_s=time.time())

    def hear_state(self, device: str, state: DeviceState) -> None:
        """A device, or the broker on its behalf, has said what it is doing."""
        if state.status in ("lost", "disconnected"):  # said when it was gone already
            self._keep(device, state=state)
        else:
            self._keep(device, state=state, seen_unix_s=time.time())

    def hear_plan(self, device: str, plan: Plan) -> None:
        """A device wants to take part with a plan."""
        self._keep(device, plan=plan)

    def hear_profile(self, device: str, profile: DeviceProfile) -> None:
        """A device has said what it is. Raises `StoreError` where that cannot be kept."""
        encoded, path = msgspec.json.encode(profile), self._directory.profile(device)
        if len(encoded) > _MOST_PROFILE_BYTES:
            _log.warning("the profile of device %s is longer than any can be: it is left aside", device)
        elif device in self._devices or len(self._devices) < _MOST_DEVICES:
            if not _has(path, encoded):  # at each start, the broker tells again what every device is
                _write(path, profile)
            self._keep(device, architecture=profile.architecture, python=profile.python, release=profile.release)

    def forget(self, device: str) -> None:
        """A device was removed."""
        self._changed = self._devices.pop(device, None) is not None or self._changed
        self._directory.profile(device).unlink(missing_ok=True)

    def all(self) -> Mapping[str, Sighting]:
        """Returns what is known of every device, by id."""
        return self._devices

    def is_at_work(self, device: str) -> bool:
        """Whether a device last said that it works on a task."""
        sighting = self._devices.get(device)
        status = None if sighting is None or sighting.state is None else sighting.state.status
        return status in ("downloading", "training", "uploading", "sleeping")

    def save(self, tell_busy: Callable[[], frozenset[str]], *, at_once: bool = False) -> None:
        """Writes what has changed, if it is time.

        Args:
            tell_busy: returns the devices that the aggregator waits for.
            at_once: it is time.

        Raises:
            StoreError: the disk is full or failing.
        """
        every_s = _SAVE_EVERY_S * max(1.0, len(self._devices) / _PER_SECOND)
        if not at_once and time.monotonic() - self._saved_at_s < every_s:
            return
        busy = tell_busy()
        for device, sighting in list(self._devices.items()):
            if sighting.busy != (device in busy):
                self._devices[device] = replace(sighting, busy=device in busy)
                self._changed = True
        if self._changed:
            _write(self._directory.sightings, _Document(devices=self._devices))
            self._changed = False
        self._saved_at_s = time.monotonic()

    def _keep(self, device: str, **fields: object) -> None:
        known = self._devices.get(device)
        if known is None and len(self._devices) >= _MOST_DEVICES:
            return
        self._devices[device] = replace(known or Sighting(seen_unix_s=0.0), **fields)
        self._changed = True


def _has(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _write(path: Path, document: msgspec.Struct) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        replace_file(path, [msgspec.json.encode(document)])
    except OSError as error:
        raise StoreError(f"the run directory cannot be written: {path}: {error.strerror}; {MAKE_ROOM}") from error


def read_sightings(directory: Path) -> dict[str, Sighting]:
    """Returns what a run's aggregator has last heard of each device; nothing where none has been at work.

    Raises:
        StoreError: the document is damaged or cannot be read.
    """
    path = directory / "devices.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Document).devices
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: {error}; remove it, and the aggregator makes it anew") from error


def read_profile_of(directory: Path, device: str) -> DeviceProfile | None:
    """Returns what a device has last said it is; None where it has not, or what was kept does not decode."""
    try:
        return msgspec.json.decode((directory / "profiles" / f"{device}.json").read_bytes(), type=DeviceProfile)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
