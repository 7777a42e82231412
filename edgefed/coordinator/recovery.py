"""Going on with a run whose files were damaged: what is whole, and a store made anew from it.

What was lost is given up as a whole round: the adapter of the last round that is whole becomes that of a new round,
and the federation goes on from there. No round number is used twice, so that what a device has delivered, what was
answered, and what privacy was spent keep their meaning. The damaged files are put aside, not removed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import sqlalchemy as sql

from edgefed.aggregation.exchange import Intervention
from edgefed.coordinator.answers import Answer, MergedRound
from edgefed.coordinator.database import MARK, RunInUse, engine_of, lock_run, put_meta
from edgefed.coordinator.digests import row_digest
from edgefed.coordinator.divergence import typical_loss
from edgefed.coordinator.evaluations import Credibility
from edgefed.coordinator.events import Recovered
from edgefed.coordinator.mark import Mark
from edgefed.coordinator.merging import unmerged_record
from edgefed.coordinator.passport import Passport
from edgefed.coordinator.round_records import write_record
from edgefed.coordinator.run_directory import RunDirectory, disk_trouble_told
from edgefed.coordinator.salvage import Salvage, salvage
from edgefed.coordinator.soundness import check_account, state_trouble, update_trouble
from edgefed.coordinator.store import Store, answer_values
from edgefed.coordinator.tables import SCHEMA_VERSION, answers_table, journal_table, metadata, rounds_table
from edgefed.errors import StoreError
from edgefed.files import sync_directory, sync_file, temporary_beside

__all__ = ["Findings", "Recovery", "examine", "recover"]


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found of a run.

    Attributes:
        troubles: what is damaged, in words; nothing where all is whole.
        whole: numbers of rounds whose adapter is whole, in order; 0 is the one before the first round.
        last: the last round that is over, as far as anything tells.
    """

    troubles: tuple[str, ...]
    whole: tuple[int, ...]
    last: int


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was made of a damaged run.

    Attributes:
        of: the round whose adapter it goes on from.
        given_up: the round that was given up; the next one is open when an aggregator is started.
        unused: updates that had been accepted for it.
        aside: where the damaged store is now.
    """

    of: int
    given_up: int
    unused: int
    aside: Path


def examine(directory: Path) -> Findings:
    """Looks at everything that a run keeps and an aggregator needs, while none is at work in it.

    Raises:
        StoreError: there is no run, it is of another version, or an aggregator is at work in it.
    """
    lock = _locked(directory)
    try:
        return _examined(RunDirectory(directory), salvage(directory))
    finally:
        os.close(lock)


def recover(directory: Path, round_: int | None = None) -> Recovery:
    """Makes a run whole again.

    Args:
        directory: of the run; no aggregator may be at work in it.
        round_: whose adapter to go on from; the last that is whole where none is named.

    Raises:
        StoreError: there is too little left to go on from: says what, and what to do instead.
    """
    lock = _locked(directory)
    try:
        with disk_trouble_told(directory):
            return _recovered(RunDirectory(directory), salvage(directory), round_)
    finally:
        os.close(lock)


def _locked(directory: Path) -> int:
    if not any((directory / name).exists() for name in ("store.sqlite", "run.json", MARK)):
        raise StoreError(f"{directory} has no store.sqlite: it is no run directory, or only a part of one")
    try:
        with disk_trouble_told(directory):
            lock = lock_run(directory)
    except RunInUse as error:
        raise StoreError(
            f"an aggregator (process {error.owner}) is at work in {directory}, and the run must stand still for this: "
            "end it first; when it is started again, it goes on where it was"
        ) from None
    try:
        Store.refuse_other_version(directory)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _examined(directory: RunDirectory, found: Salvage) -> Findings:
    troubles = []
    try:
        with Store.reading(directory.path) as store:
            store.check()
            store.check_mark()
            check_account(store)
    except StoreError as error:
        troubles.append(str(error).partition("; `edgefed store check")[0])
    if found.passport is None:
        troubles.append("neither the store nor run.json says what the run was begun with")
    states = {number: state_trouble(directory.state(number), digest) for number, digest in _digests(found).items()}
    last = _last(directory, found)
    kept = {number for number in states if directory.state(number).exists()}
    troubles += [states[number] for number in sorted(kept | ({last} & states.keys())) if states[number]]
    troubles += filter(
        None, (update_trouble(directory, one.update) for one in found.received if one.update.round > last)
    )
    return Findings(tuple(troubles), tuple(number for number in sorted(kept) if not states[number]), last)


def _recovered(directory: RunDirectory, found: Salvage, round_: int | None) -> Recovery:
    passport = found.passport
    if passport is None:
        raise StoreError(
            f"neither the store in {directory.path} nor run.json says what the run was begun with: it cannot go on. "
            "Its adapters are in global/<round>; begin another federation in a directory of its own"
        )
    _check_privacy(directory, found, passport)
    of = _chosen(_examined(directory, found), directory, round_)
    given_up = max(_last(directory, found) + 1, *(one.round for one in found.answers), 1)
    directory.copy_state(of, given_up)
    record = _record(directory, found, of, given_up)
    write_record(directory, record)
    found = replace(found, merged=(*found.merged, record))
    fresh = temporary_beside(directory.path / "store.sqlite")
    try:
        _write_store(fresh, directory, found, passport)
        aside = _put_aside(directory, found)
        fresh.replace(directory.path / "store.sqlite")
        directory.history.unlink(missing_ok=True)  # it has a line for each record, and is made again from these
    finally:
        fresh.unlink(missing_ok=True)
    sync_directory(directory.path)
    return Recovery(of, given_up, len(record.interventions), aside)


def _digests(found: Salvage) -> dict[int, str]:
    digests = {one.round: one.digest for one in found.merged}
    return digests if found.start is None else {0: found.start.digest, **digests}


def _last(directory: RunDirectory, found: Salvage) -> int:
    """Returns the last round that is over, by its record, or by its state where the record is lost."""
    states = (int(path.name) for path in directory.states.iterdir() if path.name.isdecimal())
    return max([0, *(one.round for one in found.merged), *states])


def _chosen(findings: Findings, directory: RunDirectory, round_: int | None) -> int:
    if not findings.whole:
        raise StoreError(
            f"no adapter in {directory.states} is whole: begin another federation in a directory of its own"
        )
    of = findings.whole[-1] if round_ is None else round_
    if of not in findings.whole:
        whole = ", ".join(str(number) for number in findings.whole)
        raise StoreError(f"the adapter after round {of} is not whole, or not there; whole are those after: {whole}")
    return of


def _check_privacy(directory: RunDirectory, found: Salvage, passport: Passport) -> None:
    """Refuses to go on where sums that were sent out could no longer be counted."""
    privacy = passport.identity.get("client_privacy", {})
    kept = {one.round for one in found.merged}
    lost = [number for number in range(1, _last(directory, found) + 1) if number not in kept]
    if privacy.get("noise_multiplier") and lost:
        raise StoreError(
            f"the records of rounds {', '.join(map(str, lost))} are lost, and with client_privacy their sums have to "
            "be counted: the run cannot go on. Begin another federation in a directory of its own, and add what "
            "this one may have spent"
        )


def _record(directory: RunDirectory, found: Salvage, of: int, given_up: int) -> MergedRound:
    source = found.start if of == 0 else next(one for one in found.merged if one.round == of)
    assert source is not None, "what is whole has a digest, which is in the same record"
    reason = f"the run was recovered from damage, and goes on from the adapter after round {of}"
    return msgspec.structs.replace(
        unmerged_record(directory, given_up, source),
        interventions=tuple(
            Intervention(device=one.device, round=one.round, what="excluded", reason=reason)
            for one in _unused(directory, found)
        ),
        copied=of,
        given_up_because=reason,
    )


def _unused(directory: RunDirectory, found: Salvage) -> list[Answer]:
    """Returns what was accepted and is in no sum that is known; that a late update was waiting, its file tells."""
    over = {one.round for one in found.merged}
    last = found.merged[-1].devices if found.merged else {}
    settled = {(one.device, one.round) for record in found.merged for one in record.interventions}
    # A kill right after a sum leaves the files of what is in it.
    settled |= {(one.device, one.round) for one in found.answers if one.outcome == "late" and one.device in last}

    def waited(answer: Answer) -> bool:
        place = directory.update(answer.device, answer.round, answer.sha256)
        return answer.outcome == "late" and (answer.device, answer.round) not in settled and place.exists()

    return [
        one for one in found.answers if (one.outcome in ("counted", "late") and one.round not in over) or waited(one)
    ]


def _evaluated(found: Salvage, passport: Passport) -> Recovered:
    """Returns what the devices found of the adapters, without the round."""
    credibility = Credibility.of_run(passport.identity)
    by_round: dict[int, list[tuple[str, float, int]]] = {}
    for one in found.answers:
        evaluation = None if one.record is None else one.record.evaluation
        if one.outcome in ("counted", "evaluated") and evaluation is not None:
            by_round.setdefault(one.round, []).append((one.device, *credibility.weigh(one.device, evaluation)))
    failed = {one.round for one in found.merged if one.copied is not None}
    losses, typical = [], []
    for round_, evaluations in sorted(by_round.items()):
        tokens = sum(count for _, _, count in evaluations)
        median = typical_loss(evaluations)
        if tokens:
            losses.append((round_ - 1, sum(loss * count for _, loss, count in evaluations) / tokens))
        if median is not None and round_ not in failed:
            typical.append((round_ - 1, median))
    return Recovered(0, tuple(losses), tuple(typical))


def _write_store(path: Path, directory: RunDirectory, found: Salvage, passport: Passport) -> None:
    """Writes a store that is as if the last record's round had just ended."""
    whole = _whole_rounds(directory, _digests(found))
    told = _evaluated(found, passport)
    # Of an adapter that is gone nothing can be gone back to.
    losses, typical = (tuple(pair for pair in pairs if pair[0] in whole) for pairs in (told.losses, told.typical))
    event = msgspec.json.encode(Recovered(found.merged[-1].round, losses, typical)).decode()
    meta = {
        "schema_version": str(SCHEMA_VERSION),
        "identity": msgspec.json.encode(passport.identity, order="sorted").decode(),
        "run": passport.run,
        "writes": str(max(found.writes, Mark.read(directory.path / MARK)) + 1),
        "journal": row_digest("", 0.0, event),
    }
    if found.start is not None:
        meta["start"] = msgspec.json.encode(found.start).decode()
    engine = engine_of(path)
    with engine.begin() as connection:
        metadata.create_all(connection)
        for key, value in meta.items():
            put_meta(connection, key, value)
        connection.execute(sql.insert(journal_table).values(now_s=0.0, event=event, digest=meta["journal"]))
        _insert(connection, found.answers, found.merged)
    engine.dispose()
    sync_file(path)


def _whole_rounds(directory: RunDirectory, digests: Mapping[int, str]) -> set[int]:
    return {number for number, digest in digests.items() if not state_trouble(directory.state(number), digest)}


def _insert(connection: sql.Connection, answers: Iterable[Answer], rounds: Iterable[MergedRound]) -> None:
    for answer in answers:
        connection.execute(sql.insert(answers_table).values(**answer_values(answer)))
    for one in rounds:
        text = msgspec.json.encode(one).decode()
        values = {"round": one.round, "merged": text, "digest": row_digest(one.round, text)}
        connection.execute(sql.insert(rounds_table).values(**values))


def _put_aside(directory: RunDirectory, found: Salvage) -> Path:
    """Keeps copies of the damaged store, and takes away what must not come near another: its log, and bad states."""
    run = directory.path
    aside = run / f"damaged-{1 + sum(1 for _ in run.glob('damaged-*'))}"
    aside.mkdir()
    for path in run.glob("store.sqlite*"):
        shutil.copy2(path, aside)
        sync_file(aside / path.name)
    whole = {str(number) for number in _whole_rounds(directory, _digests(found))}
    for state in [path for path in directory.states.iterdir() if path.name.removesuffix(".json") not in whole]:
        state.rename(aside / f"global-{state.name}")
    sync_directory(aside)
    sync_directory(run)
    for suffix in ("-wal", "-shm"):
        (run / f"store.sqlite{suffix}").unlink(missing_ok=True)
    return aside
