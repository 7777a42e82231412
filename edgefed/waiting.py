"""Waiting with an end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["wait_at_most"]

_T = TypeVar("_T")


async def wait_at_most(awaitable: Awaitable[_T], timeout_s: float | None) -> _T:
    """Returns what something that is waited for returns, within so many seconds; None waits for ever.

    `asyncio.wait_for` before Python 3.12 drops a cancellation that comes in the moment in which what is waited for is
    done (https://github.com/python/cpython/issues/86296): whoever was to be stopped then goes on, perhaps for ever.

    Raises:
        asyncio.TimeoutError: it took longer, and was cancelled.
    """
    if sys.version_info >= (3, 12):
        return await asyncio.wait_for(awaitable, timeout_s)  # noqa: TID251
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait([task], timeout=timeout_s)
    except asyncio.CancelledError:
        await _end(task)
        raise
    if not task.done():
        await _end(task)
        if task.cancelled():
            raise asyncio.TimeoutError
    return task.result()


async def _end(task: asyncio.Future[_T]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # seen, whatever becomes of it
