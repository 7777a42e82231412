"""A file on its way in: chunks put together again, and checked.

Whatever gets lost is missing still, and is asked for again, after a restart of either side too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from edgefed.errors import ChunkError
from edgefed.files import sync_directory
from edgefed.protocol.chunks import Chunk, Ranges

__all__ = ["IncomingBlob"]

_log = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
_CHECKPOINT_BYTES = 16 << 20
_CHECKPOINT_S = 5.0
_MAX_KEPT_RANGES = 1 << 20


class IncomingBlob:
    """A blob that arrives as chunks: ``<directory>/<sha256>.part`` until it is whole and checked.

    Then it is ``<directory>/<sha256>``. What has arrived is remembered in ``<sha256>.received``, so that a
    receiver that was killed asks only for the rest. That file never claims more than is on the disk: the data
    is synced first, then the claim is written. It is brought up to date by a thread behind the scenes, every 16
    MiB or 5 s, whichever comes first: often enough that a kill costs seconds of transfer, rarely enough that
    syncing costs nothing against the network, and a flash card survives.

    The same thread hashes what has arrived without a gap, so that ``finish`` has little left to do. A position is
    written once: a second chunk for it, honest or not, cannot change what was hashed.

    Not to be used by two at a time. ``receive`` is quick enough for an event loop; ``finish`` and ``close``
    sync to disk, so call them in a thread.
    """

    def __init__(self, directory: Path, sha256: str, total_bytes: int, *, max_bytes: int | None = None) -> None:
        """Start, or go on where a previous receiver of the same blob stopped.

        Args:
            directory: Where the files are; made if missing.
            sha256: Of the whole blob, 64 lower-case hexadecimal digits.
            total_bytes: Size of the whole blob.
            max_bytes: Refuse a blob larger than this.

        Raises:
            ChunkError: ``sha256`` or ``total_bytes`` cannot be, or the blob is larger than ``max_bytes``.
            OSError: The directory cannot be written.
        """
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise ChunkError(f"a sha256 is 64 lower-case hexadecimal digits, not {sha256!r:.80}")
        if total_bytes < 0 or (max_bytes is not None and total_bytes > max_bytes):
            raise ChunkError(f"a blob of {total_bytes} bytes is not within 0 and the limit of {max_bytes}")
        self.sha256 = sha256
        self.total_bytes = total_bytes
        self.path = directory / sha256
        self._part_path = directory / f"{sha256}.part"
        self._claim_path = directory / f"{sha256}.received"
        self._lock = threading.Lock()  # finish may run in another thread than receive
        self._behind: Future[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._fd = -1
        directory.mkdir(parents=True, exist_ok=True)
        self._finished = self.path.is_file() and self.path.stat().st_size == total_bytes
        if self._finished:
            self._received = Ranges([(0, total_bytes)])
        else:
            self._open()

    # ------------------------------------------------------------------ what is there

    @property
    def received_bytes(self) -> int:
        """How many bytes have arrived."""
        return self._received.total_bytes

    @property
    def complete(self) -> bool:
        """Whether every byte has arrived; ``finish`` tells whether they are the right ones."""
        return self._received.prefix_bytes == self.total_bytes

    def missing(self) -> Ranges:
        """Return what has not arrived."""
        return self._received.missing(self.total_bytes)

    # ------------------------------------------------------------------ arriving

    def receive(self, chunk: Chunk) -> int:
        """Write what is new in a chunk, and return how many bytes that was; 0 for a repetition.

        Raises:
            ChunkError: The chunk is of another blob, or gives it another size.
            OSError: The disk is full or failing, now or since the last call.
        """
        if chunk.sha256 != self.sha256:
            raise ChunkError(f"a chunk of blob {chunk.sha256[:12]}… does not belong to {self.sha256[:12]}…")
        if chunk.total_bytes != self.total_bytes:
            raise ChunkError(
                f"a chunk says that blob {self.sha256[:12]}… has {chunk.total_bytes} bytes, not {self.total_bytes}"
            )
        with self._lock:
            new = Ranges([(chunk.offset, chunk.end)]).subtract(self._received)
            if not new or self._fd < 0:  # had it before, or closed: nobody waits for it
                return 0
            data = memoryview(chunk.data)
            for lo, hi in new:
                _write_all(self._fd, data[lo - chunk.offset : hi - chunk.offset], lo)
            self._received = self._received.add(chunk.offset, chunk.end)
            self._unclaimed_bytes += new.total_bytes
            self._follow()
        return new.total_bytes

    def finish(self) -> Path:
        """Check the whole blob against its hash, make it durable, and return its path.

        Raises:
            ChunkError: Bytes are missing; or the content is not what the hash says, and everything is missing
                again.
            OSError: The disk is full or failing.
        """
        if not self.complete:
            raise ChunkError(f"blob {self.sha256[:12]}… lacks {self.missing().total_bytes} of {self.total_bytes} bytes")
        if self._finished:
            return self.path
        self._catch_up()
        self._hash_up_to(self.total_bytes)
        with self._lock:
            if self._digest.hexdigest() != self.sha256:
                self._discard()
                self._open()
                raise ChunkError(f"what arrived as blob {self.sha256[:12]}… has another sha256; it starts over")
            self._sync()
            self._release()
            self._part_path.rename(self.path)
            sync_directory(self.path.parent)
            self._claim_path.unlink(missing_ok=True)
            self._finished = True
        return self.path

    def close(self) -> None:
        """Remember what has arrived, for the next receiver, and let go of the files."""
        with self._lock:
            if self._fd < 0:
                return
            try:
                self._catch_up()
                if self._unclaimed_bytes:
                    self._claim(self._received)
            finally:
                self._release()

    def discard(self) -> None:
        """Let go of the files and remove what has arrived, unless the blob is finished."""
        with self._lock:
            self._discard()

    # ------------------------------------------------------------------ files

    def _open(self) -> None:
        self._received = self._read_claim()
        self._sync_failed = False
        self._fd = os.open(self._part_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if self._received.end > os.fstat(self._fd).st_size:  # somebody touched the files
            self._received = Ranges()
        self._digest = hashlib.sha256()
        self._hashed_bytes = 0
        self._unclaimed_bytes = 0
        self._claimed_at_s = time.monotonic()

    def _read_claim(self) -> Ranges:
        try:
            claim = json.loads(self._claim_path.read_bytes())
            if claim["total_bytes"] == self.total_bytes:
                received = Ranges.from_list(claim["received"], max_ranges=_MAX_KEPT_RANGES)
                if received.end <= self.total_bytes:
                    return received
        except FileNotFoundError:
            return Ranges()
        except (ValueError, TypeError, KeyError, RecursionError, ChunkError) as error:
            _log.warning("%s is damaged (%s): the transfer starts over", self._claim_path, error)
        return Ranges()

    def _claim(self, received: Ranges) -> None:
        self._sync()  # first the data …
        claim = {"total_bytes": self.total_bytes, "received": received.to_list()}
        scratch = self._claim_path.with_suffix(".received.new")
        with scratch.open("w") as file:
            json.dump(claim, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self._claim_path)  # … then the claim
        self._claimed_at_s = time.monotonic()

    def _sync(self) -> None:
        if self._sync_failed:  # the kernel forgets what it could not write: a second sync would say that all is well
            raise OSError(errno.EIO, "what has arrived could not be synced before", str(self._part_path))
        try:
            os.fdatasync(self._fd)
        except OSError:
            self._sync_failed = True
            raise

    def _discard(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # what went wrong with data that goes away does not matter
                self._catch_up()
            self._release()
        self._part_path.unlink(missing_ok=True)
        self._claim_path.unlink(missing_ok=True)
        if not self._finished:
            self._received = Ranges()

    def _release(self) -> None:
        os.close(self._fd)
        self._fd = -1
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    # ------------------------------------------------------------------ behind the scenes

    def _follow(self) -> None:
        """Set the thread to work when there is enough to do and it is idle."""
        if self._behind is not None and not self._behind.done():
            return
        self._catch_up()
        prefix_bytes = self._received.prefix_bytes
        since_claim_s = time.monotonic() - self._claimed_at_s
        claim_due = self._unclaimed_bytes >= _CHECKPOINT_BYTES or since_claim_s >= _CHECKPOINT_S
        if claim_due or self.complete or prefix_bytes - self._hashed_bytes >= _READ_BYTES:
            claim = self._received if claim_due and not self.complete else None
            if claim is not None:
                self._unclaimed_bytes = 0
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="blob")
            self._behind = self._thread.submit(self._work_behind, prefix_bytes, claim)

    def _work_behind(self, prefix_bytes: int, claim: Ranges | None) -> None:
        if claim is not None:
            self._claim(claim)
        self._hash_up_to(prefix_bytes)

    def _hash_up_to(self, prefix_bytes: int) -> None:
        while self._hashed_bytes < prefix_bytes:
            data = os.pread(self._fd, min(_READ_BYTES, prefix_bytes - self._hashed_bytes), self._hashed_bytes)
            if not data:
                raise OSError(f"{self._part_path} is shorter than what was written to it")
            self._digest.update(data)
            self._hashed_bytes += len(data)

    def _catch_up(self) -> None:
        """Wait for the thread; what went wrong there is raised here."""
        behind, self._behind = self._behind, None
        if behind is not None:
            behind.result()


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
