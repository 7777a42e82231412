"""New releases of the agent: fetched beside the rounds, checked, handed to the installer; and what came of it, shown.

::

    <state>/updates/offer.json              the latest offer and what has become of it
    <state>/updates/arriving/<sha256>       a bundle on its way; what has come is kept over a restart
    <state>/updates/incoming/<sha256>.bundle    whole and checked, for the installer (`updates.places`)

The installer is another program, and root: it checks all of it again. Here is checked what would be in vain to hand on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from edgefed.agent.downloads import Downloads
from edgefed.agent.options import AgentOptions
from edgefed.devices.release_state import ReleaseState
from edgefed.errors import EdgefedError, TransportError, UpdateError
from edgefed.files import replace_file, sync_directory
from edgefed.protocol.messages.down import ReleaseOffered
from edgefed.protocol.messages.manifest import Part
from edgefed.protocol.messages.up import UpMessage
from edgefed.protocol.topics import Topics
from edgefed.transport.base import Transport
from edgefed.updates.places import SUFFIX, Home, incoming
from edgefed.updates.record import Record, read_record
from edgefed.updates.release import Release, Result

__all__ = ["Updater"]

_log = logging.getLogger(__name__)

_SHOW_EVERY_S = 10.0
_LOOK_EVERY_S = 1.0
_WINDOW_BYTES = 32 << 20
_FREE_TIMES = 2
"""The bundle and the installer's copy; what the environment takes is for the installer to see to."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What has to outlive the agent, which the installer ends and starts.

    Attributes:
        offer: that was followed.
        state: what has become of it.
        result_before_unix_s: when the installer's last result was made before this bundle was handed to it.
    """

    offer: ReleaseOffered
    state: ReleaseState
    result_before_unix_s: float = 0.0


class Updater:
    """Follows one offer at a time, the latest.

    Args:
        options: what the owner said.
        transport: connected.
        state: the agent's directory.
        home: where this agent is installed; None where no installer looks after it.
        send: sends a message to the aggregator.
        publish: publishes the device's profile, in which `state` stands.
        idle: tells whether the agent may be ended without loss.
    """

    def __init__(
        self,
        options: AgentOptions,
        transport: Transport,
        state: Path,
        home: Home | None,
        *,
        send: Callable[[UpMessage], Awaitable[None]],
        publish: Callable[[], Awaitable[None]],
        idle: Callable[[], bool],
    ) -> None:
        self._options = options
        self._home = home
        self._publish = publish
        self._idle = idle
        self._updates = state / "updates"
        self._incoming = incoming(state)
        self._arriving = self._updates / "arriving"
        self._downloads = Downloads(transport, Topics(options.fleet), send, self._arriving, window_bytes=_WINDOW_BYTES)
        self._kept = _read_kept(self._updates / "offer.json")
        self._following: asyncio.Task[None] | None = None

    @property
    def state(self) -> ReleaseState | None:
        """What has become of the latest offer; None before the first."""
        return None if self._kept is None else self._kept.state

    def begin(self) -> None:
        """Goes on waiting for the installer, where an earlier agent has handed it a bundle."""
        if self._following is None and self._kept is not None and self._kept.state.state == "delivered":
            self._begin(self._await_result(self._kept))

    def hear(self, offer: ReleaseOffered) -> None:
        """Takes an offer. One that is followed already, or is done with, is answered by the profile."""
        kept, earlier = self._kept, self._following
        known = kept is not None and (kept.offer.rollout, kept.offer.sha256) == (offer.rollout, offer.sha256)
        under_way = earlier is not None and not earlier.done()
        if known and under_way:
            return
        if known and kept is not None and kept.state.state != "fetching":
            self._begin(self._say_again(kept))
            return
        if earlier is not None:
            earlier.cancel()
        self._begin(self._follow(offer, earlier))

    def receive(self, chunk: bytes) -> None:
        """Takes a broadcast chunk."""
        if self._following is not None and not self._following.done():
            self._downloads.receive(chunk)

    def ask_again(self) -> None:
        """After a reconnect: what was on its way may be gone."""
        self._downloads.ask_again()

    async def end(self) -> None:
        """Lets go. What has arrived is kept."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    # --- from the offer to the installer --------------------------------------------------------------------------

    async def _follow(self, offer: ReleaseOffered, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            await asyncio.gather(earlier, return_exceptions=True)
        _log.info("release %s (number %d) is offered", offer.name, offer.number)
        self._keep(_Kept(offer=offer, state=_state(offer, "fetching")))
        try:
            record = self._check(offer)
            if known := _known(record, offer):
                await self._show(_outcome(offer, known))
                return
            await self._show(_state(offer, "fetching"))
            path = await self._fetch(offer)
            await asyncio.to_thread(self._check_bundle, path, record)
            while not self._idle():  # noqa: ASYNC110 - the installer ends this agent: not in the middle of a round
                await asyncio.sleep(_LOOK_EVERY_S)
            await self._hand_over(offer, path)
        except TransportError:
            raise
        except (EdgefedError, OSError) as error:
            _log.warning("release %s: %s", offer.name, error)
            await self._show(replace(_state(offer, "refused"), reason=str(error)[:1024]))

    def _check(self, offer: ReleaseOffered) -> Record:
        """Returns what the installer remembers, where this device could take a release at all."""
        if not self._options.broker.signed:
            raise UpdateError("this agent's [broker] has no `signed = true`: code is never installed unsigned")
        if self._home is None:
            raise UpdateError("this agent was not installed as on a board: there is no installer to hand a release to")
        self._arriving.mkdir(parents=True, exist_ok=True)
        for other in self._arriving.iterdir():
            if not other.name.startswith(offer.sha256):
                other.unlink()
        wanted, free = _FREE_TIMES * offer.size_bytes, shutil.disk_usage(self._arriving).free
        if free < wanted:
            raise UpdateError(f"{free} bytes are free on the disk, and the release takes {wanted}")
        return read_record(self._home)

    async def _fetch(self, offer: ReleaseOffered) -> Path:
        showing = asyncio.create_task(self._show_progress(offer))
        try:
            fetched = await self._downloads.fetch(offer.run, [Part(sha256=offer.sha256, size_bytes=offer.size_bytes)])
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)
        _log.info("release %s is here: %d bytes in %.0f s", offer.name, fetched.received_bytes, fetched.fetch_s)
        return fetched.paths[0]

    async def _show_progress(self, offer: ReleaseOffered) -> None:
        shown = 0
        while True:
            await asyncio.sleep(_SHOW_EVERY_S)
            if self._downloads.held_bytes != shown:
                shown = self._downloads.held_bytes
                await self._show(replace(_state(offer, "fetching"), received_bytes=shown), keep=False)

    def _check_bundle(self, path: Path, record: Record) -> None:
        """Sees to it that the installer will take it; a bundle that it would refuse is removed."""
        from edgefed.security.signatures import read_verifier  # megabytes that others need not carry
        from edgefed.updates.bundle import open_bundle

        broker = self._options.broker
        verifier = read_verifier(Path(broker.tls_ca), Path(broker.tls_crl) if broker.tls_crl else None)
        try:
            bundle = open_bundle(path, verifier, fleet=self._options.fleet, now_unix_s=time.time())
            _check_fits(bundle.release)
            if bundle.id != record.latest:
                bundle.release.check_successor_of(record.highest_number)
        except UpdateError:
            path.unlink(missing_ok=True)
            raise

    async def _hand_over(self, offer: ReleaseOffered, path: Path) -> None:
        assert self._home is not None
        before = read_record(self._home).result
        delivered = replace(_state(offer, "delivered"), received_bytes=offer.size_bytes)
        kept = _Kept(offer=offer, state=delivered, result_before_unix_s=before.ended_unix_s if before else 0.0)
        self._keep(kept)
        await self._publish()  # the next thing that happens may be the end of this agent
        self._incoming.mkdir(parents=True, exist_ok=True)
        path.rename(self._incoming / f"{offer.sha256}{SUFFIX}")
        sync_directory(self._incoming)
        await self._await_result(kept)

    async def _await_result(self, kept: _Kept) -> None:
        while True:
            result = None if self._home is None else read_record(self._home).result
            # Another one, not a later one: a board without a battery for its clock wakes up in the past.
            is_new = result is not None and result.ended_unix_s != kept.result_before_unix_s
            if result is not None and is_new and _is_about(result, kept.offer):
                await self._show(_outcome(kept.offer, result))
                return
            self._hand_over_again(kept.offer)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _say_again(self, kept: _Kept) -> None:
        """Says what has become of an offer; where that is still to come, waiting for it went wrong, and begins anew."""
        await self._publish()
        if kept.state.state == "delivered":
            await self._await_result(kept)

    def _hand_over_again(self, offer: ReleaseOffered) -> None:
        """Moves a bundle that lay checked when the agent was ended between its word and its deed."""
        path = self._arriving / offer.sha256
        if path.is_file():
            self._incoming.mkdir(parents=True, exist_ok=True)
            path.rename(self._incoming / f"{offer.sha256}{SUFFIX}")
            sync_directory(self._incoming)

    # --- what is kept and shown -----------------------------------------------------------------------------------

    async def _show(self, state: ReleaseState, *, keep: bool = True) -> None:
        assert self._kept is not None
        shown = replace(self._kept, state=state)
        if keep:
            self._keep(shown)
        self._kept = shown
        if state.state in ("installed", "rolled-back"):
            _log.warning("release %s: %s %s", state.name, state.state, state.reason)
        await self._publish()

    def _keep(self, kept: _Kept) -> None:
        self._updates.mkdir(parents=True, exist_ok=True)
        replace_file(self._updates / "offer.json", [msgspec.json.encode(kept)])
        self._kept = kept

    def _begin(self, doing: Awaitable[None]) -> None:
        self._following = asyncio.create_task(self._guarded(doing), name="update")

    async def _guarded(self, doing: Awaitable[None]) -> None:
        """No update that goes wrong ends the agent: the aggregator offers it again."""
        try:
            await doing
        except TransportError as error:
            _log.info("update: %s", error)
        except (UpdateError, OSError) as error:
            _log.error("update: %s", error)


def _state(offer: ReleaseOffered, state: str) -> ReleaseState:
    return ReleaseState(
        rollout=offer.rollout,
        bundle=offer.sha256,
        name=offer.name,
        number=offer.number,
        state=state,  # type: ignore[arg-type]
    )


def _outcome(offer: ReleaseOffered, result: Result) -> ReleaseState:
    return replace(_state(offer, result.outcome), reason=result.reason[:1024])


def _is_about(result: Result, offer: ReleaseOffered) -> bool:
    return offer.sha256 == result.bundle or f"{offer.sha256}{SUFFIX}" == result.file


def _known(record: Record, offer: ReleaseOffered) -> Result | None:
    """Returns what came of the same bundle before, where trying it again would change nothing."""
    result = record.result
    return result if result is not None and _is_about(result, offer) and not result.may_retry else None


def _check_fits(release: Release) -> None:
    here = platform.machine(), ".".join(platform.python_version_tuple()[:2])
    if (release.architecture, release.python) != here:
        raise UpdateError(
            f"release {release.name} is for {release.architecture} with Python {release.python}, and this is "
            f"{here[0]} with Python {here[1]}"
        )


def _read_kept(path: Path) -> _Kept | None:
    with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(path.read_bytes(), type=_Kept)
    return None
