"""Taking updates in: who may send now, what has arrived of each, and when one is whole."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgefed.coordinator.options import Transfers
from edgefed.errors import ChunkError
from edgefed.protocol.chunks import CHUNK_HEADER_BYTES, decode_chunk
from edgefed.protocol.messages.down import DownMessage, UploadGrant, UploadProgress
from edgefed.protocol.messages.up import UpdateOffer
from edgefed.protocol.messages.wire import MAX_RANGES
from edgefed.transport.blob_receiver import IncomingBlob

__all__ = ["Intake"]

_log = logging.getLogger(__name__)

_STALLED_S = 30.0
_QUIET_S = 2.0


@dataclass(slots=True)
class _Upload:
    """One update on its way. `before_s` is what earlier grants took of it, None where nobody remembers."""

    offer: UpdateOffer
    blob: IncomingBlob
    heard_at_s: float
    granted_at_s: float
    before_s: float | None
    chunks: int = 0

    def spent_s(self) -> float | None:
        """Seconds from the grant to now, those of earlier grants included."""
        return None if self.before_s is None else self.before_s + time.monotonic() - self.granted_at_s


class Intake:
    """All updates on their way in. At most so many devices send at a time; the others wait their turn.

    An update's record gets `upload_s` here: the time from the grant to the last byte is the aggregator's to tell.

    Args:
        directory: where partial and whole updates are kept, one directory per device.
        transfers: windows and limits.
        tell: sends a message to a device, in order.
        arrived: called with device, offer and file when an update is whole and durable.
        broke: called with the error when the disk fails.
        max_payload_bytes: returns what the transport takes now.
    """

    def __init__(
        self,
        directory: Path,
        transfers: Transfers,
        *,
        tell: Callable[[str, DownMessage], None],
        arrived: Callable[[str, UpdateOffer, Path], None],
        broke: Callable[[OSError], None],
        max_payload_bytes: Callable[[], int],
    ) -> None:
        self._directory = directory
        self._transfers = transfers
        self._tell = tell
        self._arrived = arrived
        self._broke = broke
        self._max_payload_bytes = max_payload_bytes
        self._waiting: dict[str, UpdateOffer] = {}
        self._active: dict[str, _Upload] = {}
        self._finishing: dict[str, asyncio.Task[None]] = {}
        self._spent_s: dict[tuple[str, str], float] = {}
        self.received_bytes = 0

    @property
    def busy(self) -> bool:
        """Whether an update is on its way, or waits for its turn."""
        return bool(self._active or self._waiting or self._finishing)

    def offer(self, device: str, offer: UpdateOffer) -> None:
        """Takes an offer that is welcome; the device is told when it may send."""
        if device in self._finishing:
            return
        upload = self._active.get(device)
        if upload is not None and upload.offer.sha256 == offer.sha256:
            if time.monotonic() - upload.heard_at_s > _QUIET_S:
                self._grant(device, upload)
            return
        if upload is not None:
            self._release(device)
        self._waiting[device] = offer
        self._admit()

    def chunk(self, device: str, payload: bytes) -> None:
        """Takes a chunk; one that belongs to no upload of this device is left aside."""
        upload = self._active.get(device)
        if upload is None:
            return
        try:
            upload.blob.receive(decode_chunk(payload))
        except ChunkError as error:
            _log.warning("device %(device)s: %(error)s", {"device": device, "error": error})
            return
        self.received_bytes += len(payload)
        upload.heard_at_s = time.monotonic()
        upload.chunks += 1
        if upload.blob.complete:
            del self._active[device]
            self._begin_to_finish(device, upload)
        elif upload.chunks % max(1, self._transfers.window_chunks // 4) == 0:
            progress = UploadProgress(sha256=upload.offer.sha256, received_bytes=upload.blob.received_bytes)
            self._tell(device, progress)

    def give_up_on(self, device: str) -> None:
        """Lets go of a device that went away. What has arrived of its update is kept for when it returns."""
        self._waiting.pop(device, None)
        if device in self._active:
            self._release(device)
            self._admit()

    def forget(self, device: str, offer: UpdateOffer) -> None:
        """Removes what has arrived of an update that is not wanted any more; one that is whole comes to its end."""
        if self._waiting.get(device) == offer:
            del self._waiting[device]
        if device in self._finishing or not (self._directory / device).is_dir():
            return
        upload = self._active.get(device)
        if upload is not None and upload.offer.sha256 == offer.sha256:
            del self._active[device]
            upload.blob.discard()
            self._admit()
        else:
            blob = IncomingBlob(self._directory / device, offer.sha256, offer.size_bytes)
            blob.discard()
            blob.path.unlink(missing_ok=True)
        self._spent_s.pop((device, offer.sha256), None)

    def give_up_on_the_stalled(self) -> None:
        """Lets others send when a device that may does not."""
        now_s = time.monotonic()
        for device in [name for name, upload in self._active.items() if now_s - upload.heard_at_s > _STALLED_S]:
            self.give_up_on(device)

    async def close(self) -> None:
        """Remembers what has arrived, for the next start."""
        await asyncio.gather(*self._finishing.values(), return_exceptions=True)
        for device in list(self._active):
            with contextlib.suppress(OSError):  # what could not be remembered is sent again
                self._release(device)

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self._transfers.uploads_at_once:
            device = next(iter(self._waiting))
            offer = self._waiting.pop(device)
            blob = IncomingBlob(
                self._directory / device, offer.sha256, offer.size_bytes, max_bytes=self._transfers.max_update_bytes
            )
            now_s = time.monotonic()
            upload = _Upload(offer, blob, now_s, now_s, self._seconds_before(device, blob, offer.sha256))
            if blob.complete:
                self._begin_to_finish(device, upload)
            else:
                self._active[device] = upload
                self._grant(device, upload)

    def _seconds_before(self, device: str, blob: IncomingBlob, sha256: str) -> float | None:
        """Returns what earlier grants took; None for a part that came before this aggregator was started."""
        spent_s = self._spent_s.pop((device, sha256), None)
        return 0.0 if spent_s is None and not blob.received_bytes else spent_s

    def _grant(self, device: str, upload: _Upload) -> None:
        upload.heard_at_s = time.monotonic()
        grant = UploadGrant(
            sha256=upload.offer.sha256,
            missing=list(upload.blob.missing())[:MAX_RANGES],
            chunk_bytes=min(self._transfers.chunk_bytes, self._max_payload_bytes() - CHUNK_HEADER_BYTES),
            window_chunks=self._transfers.window_chunks,
        )
        self._tell(device, grant)

    def _release(self, device: str) -> None:
        upload = self._active.pop(device)
        spent_s = upload.spent_s()
        if spent_s is not None and upload.blob.received_bytes:
            self._spent_s[device, upload.offer.sha256] = spent_s
        upload.blob.close()

    def _begin_to_finish(self, device: str, upload: _Upload) -> None:
        record = msgspec.structs.replace(upload.offer.record, upload_s=upload.spent_s())
        upload.offer = msgspec.structs.replace(upload.offer, record=record)
        self._finishing[device] = asyncio.create_task(self._finish(device, upload), name=f"finish-{device}")

    async def _finish(self, device: str, upload: _Upload) -> None:
        try:
            await self._take_whole(device, upload)
        except OSError as error:
            self._broke(error)

    async def _take_whole(self, device: str, upload: _Upload) -> None:
        try:
            path = await asyncio.to_thread(upload.blob.finish)
        except ChunkError as error:
            _log.warning("device %(device)s: %(error)s", {"device": device, "error": error})
            upload.blob.close()  # it has begun anew, and so does the offer, with one of its own
            del self._finishing[device]
            self.offer(device, upload.offer)
            return
        del self._finishing[device]
        self._arrived(device, upload.offer, path)
        self._admit()
