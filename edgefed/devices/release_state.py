"""What a device says of a release of the agent; a value of its own, so that who only reads it need not measure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["ReleaseState"]


class ReleaseState(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of a release that this device was offered.

    Attributes:
        rollout: the operator's wish that it belongs to.
        bundle: sha256 of its file.
        name, number: of the release.
        state: its bytes are on their way; they are here and checked, and the installer has them; it is `installed`;
            it did not come up, and the old one is back; or nothing was changed.
        received_bytes: that have come, while it is on its way.
        reason: why, where it was not installed.
    """

    rollout: Annotated[str, Meta(max_length=64)]
    bundle: Annotated[str, Meta(max_length=64)]
    name: Annotated[str, Meta(max_length=4096)]
    number: int
    state: Literal["fetching", "delivered", "installed", "rolled-back", "refused"]
    received_bytes: int = 0
    reason: Annotated[str, Meta(max_length=4096)] = ""
