"""`edgefed partition`: one data set split over devices, for trying out what a federation makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Way", "partition"]

_MIN_DIGITS = 2


class Way(str, Enum):
    """How rows find their device; see `edgefed.data.partition`."""

    UNIFORM = "uniform"
    KEY = "key"
    DIRICHLET = "dirichlet"


def partition(
    data: Annotated[Path, typer.Argument(help="A JSONL or CSV file, or a directory of them.")],
    into: Annotated[Path, typer.Option("--into", help="Directory for device-00.jsonl and so on.", file_okay=False)],
    devices: Annotated[int, typer.Option("--devices", "-n", help="How many devices.", min=1)],
    by: Annotated[Way, typer.Option("--by", help="How rows are dealt out.")] = Way.UNIFORM,
    key: Annotated[str, typer.Option("--key", help="The field that groups rows; counted in any case.")] = "",
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="Dirichlet concentration; smaller is more uneven.  [default: 0.3]")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of what is drawn.  [default: 0]")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the device files of an earlier partition.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as one JSON document.")] = False,
) -> None:
    """Split one data set over devices.

    Every row goes to exactly one of them. uniform: at random, in equal shares. key: whole groups of a field stay
    together. dirichlet: every group is spread in proportions drawn from a Dirichlet distribution; concentrations of
    0.1 to 1 are usual for uneven data.

    Examples:
      edgefed partition notes.csv --into data --devices 8
      edgefed partition notes.csv --into data -n 8 --by key --key section_header
      edgefed partition notes.csv --into data -n 8 --by dirichlet --key section_header --alpha 0.3 --seed 1
    """
    from edgefed.cli.output import told_where, write_json, write_table
    from edgefed.data.examples import read_rows

    _check(by, key, alpha, seed)
    with told_where(data):
        rows = read_rows(data)
    keys = _keys(rows, key, data)
    shares = _shares(by, keys, devices, alpha=0.3 if alpha is None else alpha, seed=seed or 0)
    with told_where(into):
        files = _write(rows, shares, into, force=force)
    counts = [_count(keys, share) if key else {} for share in shares]
    if as_json:
        entries = zip(files, shares, counts, strict=True)
        listed = [{"file": str(file), "rows": len(share), "keys": count} for file, share, count in entries]
        write_json({"devices": listed})
        return
    header = ("file", "rows", key) if key else ("file", "rows")
    written = [(str(file), len(share)) for file, share in zip(files, shares, strict=True)]
    shown = [", ".join(f"{name} {number}" for name, number in count.items()) for count in counts]
    write_table(header, [(*row, text) for row, text in zip(written, shown, strict=True)] if key else written)


def _check(by: Way, key: str, alpha: float | None, seed: int | None) -> None:
    if by is not Way.UNIFORM and not key:
        raise typer.BadParameter(f"--by {by.value} needs --key, the field that groups rows")
    if alpha is not None and by is not Way.DIRICHLET:
        raise typer.BadParameter(f"--alpha belongs to --by dirichlet; --by {by.value} has no use for it")
    if seed is not None and by is Way.KEY:
        raise typer.BadParameter("--by key draws nothing, so --seed has no effect on it")


def _keys(rows: Sequence[dict[str, str]], key: str, data: Path) -> list[str]:
    from edgefed.errors import DataError

    for number, row in enumerate(rows, start=1):
        if key and key not in row:
            raise DataError(f"{data}: row {number} has no field {key!r}; its fields are {', '.join(map(repr, row))}")
    return [row[key] if key else "" for row in rows]


def _shares(by: Way, keys: Sequence[str], devices: int, *, alpha: float, seed: int) -> list[list[int]]:
    from edgefed.data.partition import by_key, dirichlet, uniform

    if by is Way.KEY:
        return by_key(keys, devices)
    if by is Way.DIRICHLET:
        return dirichlet(keys, devices, alpha=alpha, seed=seed)
    return uniform(len(keys), devices, seed=seed)


def _count(keys: Sequence[str], share: Sequence[int]) -> dict[str, int]:
    """Returns how many rows of each key a share has, most first."""
    from collections import Counter

    return dict(Counter(keys[row] for row in share).most_common())


def _write(rows: Sequence[dict[str, str]], shares: Sequence[Sequence[int]], into: Path, *, force: bool) -> list[Path]:
    """Writes one file per share and returns their paths; none is left over from an earlier, larger partition."""
    import json

    from edgefed.errors import ConfigError
    from edgefed.files import replace_file

    earlier = sorted(into.glob("device-*.jsonl"))
    if earlier and not force:
        raise ConfigError(
            f"{into} holds {len(earlier)} device files already ({earlier[0].name}, …); --force replaces them"
        )
    into.mkdir(parents=True, exist_ok=True)
    digits = max(_MIN_DIGITS, len(str(len(shares) - 1)))
    files = [into / f"device-{number:0{digits}}.jsonl" for number in range(len(shares))]
    for file, share in zip(files, shares, strict=True):
        replace_file(file, (f"{json.dumps(rows[row], ensure_ascii=False)}\n".encode() for row in share))
    for file in set(earlier) - set(files):
        file.unlink()
    return files
