"""What devices are compared with: results measured on a reference machine, such as a data-centre GPU.

A reference file is JSON, and one of two things. A stored bench result::

    {"schema": "edgefed-bench/1",
     "results": [{"name": "H100 SXM, flan-t5-base, bf16", "source": "commit …", "record": {…a RoundRecord…}}]}

or a report (`edgefed report RUN --device ID --format json`) of a run on the machine that shall be the reference. Either
way the figures come out of records by the same arithmetic as those of the devices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgefed.errors import ConfigError
from edgefed.protocol.records import RoundRecord
from edgefed.reports.report import SCHEMA, Report
from edgefed.reports.utilization import Utilization, measure

__all__ = ["BenchFile", "BenchResult", "Reference", "read_references"]

Name = Annotated[str, Meta(min_length=1, max_length=120)]


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a bench: what was run where, and its record."""

    name: Name
    source: str = ""
    record: RoundRecord


class BenchFile(msgspec.Struct, frozen=True, kw_only=True):
    """A stored bench result."""

    schema: Literal["edgefed-bench/1"] = "edgefed-bench/1"
    results: Annotated[list[BenchResult], Meta(min_length=1, max_length=16)]


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A machine to compare with.

    Attributes:
        name: for people.
        source: where the figures are from.
        use: its measures.
        quantization: precision of the base that they are of; "" for a whole run, in which devices may differ.
    """

    name: str
    source: str
    use: Utilization
    quantization: str = ""


class _Schema(msgspec.Struct, frozen=True):
    schema: str = ""


def read_references(path: Path) -> tuple[Reference, ...]:
    """Returns the references in a file, in its order.

    Raises:
        ConfigError: it cannot be read, or is neither a bench result nor a report.
    """
    try:
        text = path.read_bytes()
        found = msgspec.json.decode(text, type=_Schema).schema
        if found == SCHEMA:
            report = msgspec.json.decode(text, type=Report)
            source = f"run {report.name}, {report.model}"
            return tuple(Reference(name=one.device, source=source, use=one.use) for one in report.devices)
        if found != "edgefed-bench/1":
            wanted = f"'edgefed-bench/1' (edgefed bench) or {SCHEMA!r} (edgefed report --format json)"
            raise ConfigError(f"{path}: its schema is {found!r}, and a reference has {wanted}")
        bench = msgspec.json.decode(text, type=BenchFile)
    except OSError as error:
        raise ConfigError(f"{path}: the reference cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not a reference: {error}") from error
    return tuple(
        Reference(name=one.name, source=one.source, use=measure(one.record), quantization=one.record.quantization)
        for one in bench.results
    )
