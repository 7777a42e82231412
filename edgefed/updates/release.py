"""What a release of the agent is, and what came of installing it: the documents, and nothing that does anything.

``release.json`` is a bundle's first member. It is signed by the fleet's aggregator as its announcements are
(`security.signatures`), for a topic on which nothing is ever published, so that no message can pass for a release.
Fields that a reader does not know are left aside: the installer that reads a release is older than the release.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgefed.errors import UpdateError
from edgefed.protocol.topics import Topics

__all__ = ["FORMAT", "LOCK", "MANIFEST", "Outcome", "Part", "Release", "Result", "release_topic"]

FORMAT = 1
"""Of the bundle; a later one is refused with the words what to do."""

MANIFEST = "release.json"
LOCK = "requirements.lock"

_Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_WheelName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl\Z", max_length=240)]
_Text = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._+ -]*\Z", max_length=64)]

Outcome = Literal["installed", "rolled-back", "refused"]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A wheel: its file name, which can be no path; its size; the sha256 of its content."""

    name: _WheelName
    size_bytes: Annotated[int, Meta(ge=1, le=8 << 30)]
    sha256: _Sha256


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    """The requirements file that pins every wheel to its hash."""

    size_bytes: Annotated[int, Meta(ge=1, le=1 << 20)]
    sha256: _Sha256


class Release(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="edgefed-release"):
    """A release of the agent for one kind of machine of one fleet.

    Attributes:
        format: of the bundle.
        fleet: the fleet that it is for.
        name: what people call it.
        version: of edgefed in it.
        number: grows from release to release of a fleet; the seconds since 1970 do. A release with a number that is not
            above the highest that a device has ever had is refused: it was signed once, but its time is over.
        architecture: of the machine, as wheels name it, such as `aarch64`.
        python: major and minor version of its Python, such as `3.11`.
        lock: the requirements file.
        wheels: in the order of their names, each once.
    """

    format: int = FORMAT
    fleet: Annotated[str, Meta(max_length=64)]
    name: _Text
    version: _Text
    number: Annotated[int, Meta(ge=1, le=2**53)]
    architecture: _Text
    python: Annotated[str, Meta(pattern=r"\A3\.[0-9]{1,2}\Z")]
    lock: Lock
    wheels: Annotated[tuple[Part, ...], Meta(min_length=1, max_length=1000)]

    def __post_init__(self) -> None:
        """Refuses wheels that are not in order, or there twice."""
        names = [wheel.name for wheel in self.wheels]
        if names != sorted(set(names)):
            raise ValueError("the wheels are not in the order of their names, each once")

    def check_successor_of(self, highest_number: int) -> None:
        """Sees to it that the release may follow whatever a device has had.

        Args:
            highest_number: of all releases that the device has ever had; 0 before the first.

        Raises:
            UpdateError: it is an older one.
        """
        if self.number <= highest_number:
            raise UpdateError(
                f"release {self.name} has number {self.number}, and this device has had {highest_number} already: to "
                "go back to it on purpose, make its bundle again, and it gets a higher number"
            )


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of installing a bundle.

    Attributes:
        bundle: sha256 of the bundle's file; empty where it could not be read.
        file: its name where the agent had put it.
        release: name of the release; empty where the bundle could not be trusted to say it.
        number: of the release; 0 likewise.
        outcome: `installed`, `rolled-back` (it did not come up, and the old one is back), or `refused` (nothing was
            changed).
        reason: why, in words, where it was not installed.
        may_retry: whether delivering the same bundle again could help; where it could not, it is refused at once.
        began_unix_s, ended_unix_s: by the device's clock.
    """

    bundle: str
    file: str
    release: str = ""
    number: int = 0
    outcome: Outcome
    reason: str = ""
    may_retry: bool = False
    began_unix_s: float
    ended_unix_s: float


def release_topic(fleet: str) -> str:
    """Returns what a release is signed for, where a message is signed for its topic."""
    return f"{Topics(fleet).root}/release"
