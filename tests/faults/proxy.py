"""A bad network between MQTT clients and their broker: a TCP proxy whose trouble is drawn from a seed.

async with FaultProxy(broker.port, seed=1, delay_s=0.25, bytes_per_s=32_000) as proxy:
    ... clients connect to 127.0.0.1, proxy.port ...
    proxy.cut()           # every connection breaks
    proxy.black_hole()    # packets vanish, connections stay up; until heal()
    proxy.half_open()     # the broker sees every connection end, the clients see nothing
    proxy.refuse()        # nobody can connect; until heal()
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

__all__ = ["FaultProxy"]

_PIECE_BYTES = 1024
_PIECES_ON_THE_WAY = 64


@dataclass(eq=False)
class _Link:
    """One connection: its two halves, and whether the client's is left dangling."""

    client: asyncio.StreamWriter
    broker: asyncio.StreamWriter
    dangling: bool = False
    is_cut: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def abort(self) -> None:
        self.is_cut = True
        for writer in (self.client, self.broker):
            writer.transport.abort()


class FaultProxy:
    """Connections from `port` to a broker on this machine.

    Args:
        broker_port: where the broker listens.
        seed: of the jitter and of when connections are cut.
        delay_s: each way, for every piece.
        jitter_s: up to so much more; order is kept, as TCP keeps it.
        bytes_per_s: of one connection, each way; None for no limit.
        cut_every_s: mean time between two cuts of all connections; None for none.

    Attributes:
        port: where clients connect.
        up_bytes, down_bytes: what came from the clients, and what went to them.
        cuts: how often connections were cut.
    """

    def __init__(
        self,
        broker_port: int,
        *,
        seed: int = 0,
        delay_s: float = 0.0,
        jitter_s: float = 0.0,
        bytes_per_s: float | None = None,
        cut_every_s: float | None = None,
    ) -> None:
        self.port = 0
        self.up_bytes = self.down_bytes = self.cuts = 0
        self._broker_port = broker_port
        self._draw = random.Random(seed)
        self._delay_s, self._jitter_s = delay_s, jitter_s
        self._bytes_per_s = bytes_per_s
        self._cut_every_s = cut_every_s
        self._links: set[_Link] = set()
        self._refusing = False
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._cutter = asyncio.create_task(self._cut_now_and_then())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._cutter.cancel()
        self._server.close()
        for link in list(self._links):
            link.abort()
            for task in link.tasks:
                task.cancel()
        await asyncio.gather(self._cutter, *(t for link in self._links for t in link.tasks), return_exceptions=True)
        await asyncio.sleep(0)  # aborted transports close in the loop's next turn

    # --- trouble --------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Breaks every connection, at both ends."""
        self.cuts += 1
        for link in list(self._links):
            link.abort()

    def black_hole(self) -> None:
        """Lets nothing through, in either direction, until `heal`; connections stay up, and new ones get no answer."""
        self._flowing.clear()

    def half_open(self) -> None:
        """Ends every connection at the broker. The clients are not told, and what they say is swallowed."""
        for link in self._links:
            link.dangling = True
            link.broker.transport.abort()

    def refuse(self) -> None:
        """Breaks every connection and accepts none until `heal`."""
        self._refusing = True
        self.cut()

    def heal(self) -> None:
        """Ends `black_hole` and `refuse`."""
        self._refusing = False
        self._flowing.set()

    async def _cut_now_and_then(self) -> None:
        while self._cut_every_s is not None:
            await asyncio.sleep(self._draw.uniform(0.5, 1.5) * self._cut_every_s)
            self.cut()

    # --- the way of the bytes -------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self._broker_port)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, to_broker)
        self._links.add(link)
        link.tasks = {
            asyncio.create_task(self._carry(link, reader, to_broker, upwards=True)),
            asyncio.create_task(self._carry(link, from_broker, writer, upwards=False)),
        }
        await asyncio.gather(*link.tasks, return_exceptions=True)
        link.abort()
        self._links.discard(link)

    async def _carry(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, upwards: bool
    ) -> None:
        """Carries one direction until it ends; then the other end learns of it, unless it is left dangling."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES_ON_THE_WAY)
        delivering = asyncio.create_task(self._deliver(link, pieces, writer, upwards=upwards))
        try:
            async for due_s, piece in self._timed(reader):
                if link.is_cut:  # what the proxy had read ahead never left
                    break
                if upwards:
                    self.up_bytes += len(piece)
                await pieces.put((due_s, piece))
            await pieces.put((0.0, b""))
            await delivering
        finally:
            delivering.cancel()
        if not link.dangling:
            link.abort()
        elif not upwards:
            await asyncio.Event().wait()  # the client's half stays up until it gives up by itself, or all is over

    async def _timed(self, reader: asyncio.StreamReader) -> AsyncIterator[tuple[float, bytes]]:
        """Yields what arrives, as fast as the link takes it, and when it is due at the other end."""
        loop = asyncio.get_running_loop()
        free_s = due_s = 0.0
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(_PIECE_BYTES):
                if self._bytes_per_s is not None:  # the rest stays with the sender, where a cut cannot lose it
                    free_s = max(free_s, loop.time()) + len(piece) / self._bytes_per_s
                    await asyncio.sleep(free_s - loop.time())
                due_s = max(due_s, loop.time() + self._delay_s + self._draw.uniform(0.0, self._jitter_s))
                yield due_s, piece

    async def _deliver(
        self, link: _Link, pieces: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, *, upwards: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while True:
                due_s, piece = await pieces.get()
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                await self._flowing.wait()
                if not piece:
                    return
                if link.dangling and upwards:
                    continue
                writer.write(piece)
                await writer.drain()
                if not upwards:
                    self.down_bytes += len(piece)
