"""The aggregator's durable memory: the journal of the round machine, every answer a device gave, every merged round.

When a method returns, its rows are on disk and survive `kill -9` and a power cut (SQLite in WAL
mode with full synchronisation). Each method is one transaction. An answer and the event it causes are written together,
so an update is either acknowledged and in the journal, or neither.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sql

from edgefed.coordinator.answers import Answer, MergedRound
from edgefed.coordinator.crash_points import AtWrite
from edgefed.coordinator.database import Database, OtherVersion, put_meta
from edgefed.coordinator.digests import row_digest
from edgefed.coordinator.events import Event
from edgefed.coordinator.passport import Passport, changed_settings, read_passport, write_passport
from edgefed.coordinator.run_directory import damaged, disk_trouble_told
from edgefed.coordinator.tables import answers_table, journal_table, rounds_table
from edgefed.errors import StoreError

__all__ = ["Store", "answer_values", "kept_settings"]


class Store:
    """A run's store. Open it with `Store.open`, and close it.

    Only one process may have a store open: a second one is refused with the process id of the first.
    """

    def __init__(self, opened: Database) -> None:
        self._database = opened
        self._tell: Callable[[Answer | MergedRound], None] = lambda _: None
        self.directory = opened.directory

    @classmethod
    def open(cls, directory: Path, identity: Mapping[str, Any], *, at_write: AtWrite | None = None) -> Store:
        """Opens or creates the store of a run.

        Args:
            directory: the run's directory; made if it is not there.
            identity: what must not change while the run goes on (the settings). It is kept on first use and
                compared afterwards.
            at_write: called before and after each durable write; without it, the environment says whether to die there
                (`edgefed.coordinator.crash_points`).

        Raises:
            StoreError: it is in use, damaged, of another version, or was made with other settings.
        """
        store = cls(Database.open(directory, at_write))
        try:
            store.check()
            store._check_identity(identity)
            store._write_passport(identity)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    @contextlib.contextmanager
    def reading(cls, directory: Path) -> Iterator[Store]:
        """Opens the store of a run for reading only, whether or not an aggregator is at work in it.

        It takes no lock and changes nothing, not even on a disk that could be written.

        Raises:
            StoreError: there is no store, or it is of another version or cannot be read.
        """
        store = cls(Database.reading(directory))
        try:
            yield store
        finally:
            store.close()

    @staticmethod
    def refuse_other_version(directory: Path) -> None:
        """Lets a store of this version pass, and one that is damaged.

        Raises:
            OtherVersion: it is of another version.
        """
        try:
            Database.reading(directory).close()
        except OtherVersion:
            raise
        except StoreError:
            return

    def settings(self) -> dict[str, Any]:
        """Returns what `open` was given as identity when the run was begun.

        Raises:
            StoreError: the run has none yet, or they do not decode.
        """
        text = self._database.get_meta("identity")
        if text is None:
            raise StoreError(f"the store in {self.directory} cannot be read: it has no settings yet")
        try:
            settings: dict[str, Any] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise damaged(self.directory, f"its settings do not decode: {error}") from error
        return settings

    @property
    def run(self) -> str:
        """The id of this run, drawn when its store was made."""
        run = self._database.get_meta("run")
        if run is None:
            run = secrets.token_hex(8)
            self._database.set_meta("run", run)
        return run

    def on_kept(self, tell: Callable[[Answer | MergedRound], None]) -> None:
        """Has a function called with each answer and merged round from now on, once it is durable."""
        self._tell = tell

    def close(self) -> None:
        """Closes the store and lets another process have it."""
        self._database.close()

    def journal(self) -> Iterator[tuple[Event, float]]:
        """Yields every event with its time in seconds, in order.

        Raises:
            StoreError: an entry does not decode; everything before it has been yielded.
        """
        head, last = "", self._last()
        seen = not last  # the aggregator may add to it meanwhile
        with self._database.read() as connection:
            rows = connection.execute(sql.select(journal_table).order_by(journal_table.c.sequence))
            for row in rows:
                head = row_digest(head, row.now_s, row.event)
                if row.digest != head:
                    raise damaged(self.directory, f"journal entry {row.sequence} is not what was written")
                seen = seen or head == last
                event: Event = msgspec.json.decode(row.event, type=Event)
                yield event, row.now_s
        if not seen:
            raise damaged(self.directory, "the last journal entries are gone")

    def append(self, event: Event, now_s: float, *, answer: Answer | None = None) -> None:
        """Adds an event to the journal, and the answer that caused it, in one transaction.

        Raises:
            StoreError: it could not be written (a full disk, say); nothing was.
        """
        text = msgspec.json.encode(event).decode()
        with self._database.write() as connection:
            self._journalled(connection, text, now_s)
            if answer is not None:
                _insert_answer(connection, answer)
        if answer is not None:
            self._tell(answer)

    def add_answer(self, answer: Answer) -> None:
        """Keeps an answer that the round machine need not know of: one that was dropped or rejected."""
        with self._database.write() as connection:
            _insert_answer(connection, answer)
        self._tell(answer)

    def find_answer(self, round_: int, device: str, sha256: str) -> Answer | None:
        """Returns what became of an update that was answered before, or None."""
        query = sql.select(answers_table).where(
            answers_table.c.round == round_, answers_table.c.device == device, answers_table.c.sha256 == sha256
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
            return None if row is None else self._answer(row)

    def answers(self, round_: int | None = None) -> list[Answer]:
        """Returns the answers of one round, or all, in order of arrival."""
        query = sql.select(answers_table).order_by(answers_table.c.sequence)
        if round_ is not None:
            query = query.where(answers_table.c.round == round_)
        with self._database.read() as connection:
            return [self._answer(row) for row in connection.execute(query)]

    def count_rejected(self) -> int:
        """Returns how many updates were rejected so far."""
        query = sql.select(sql.func.count()).select_from(answers_table).where(answers_table.c.outcome == "rejected")
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def latest_rejected(self, count: int) -> list[Answer]:
        """Returns the last so many updates that were rejected, in order of arrival."""
        query = sql.select(answers_table).where(answers_table.c.outcome == "rejected")
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(answers_table.c.sequence.desc()).limit(count)).all()
            return [self._answer(row) for row in reversed(rows)]

    def add_merged(self, event: Event, now_s: float, merged: MergedRound) -> None:
        """Keeps a merged round together with the event that tells the round machine of it."""
        journalled = msgspec.json.encode(event).decode()
        text = msgspec.json.encode(merged).decode()
        with self._database.write() as connection:
            self._journalled(connection, journalled, now_s)
            digest = row_digest(merged.round, text)
            connection.execute(sql.insert(rounds_table).values(round=merged.round, merged=text, digest=digest))
        self._tell(merged)

    def merged_rounds(self, after: int = 0) -> list[MergedRound]:
        """Returns all merged rounds in order, less the first so many: each is some kilobytes."""
        with self._database.read() as connection:
            rows = connection.execute(sql.select(rounds_table).order_by(rounds_table.c.round).offset(after))
            return [self._merged(row) for row in rows]

    @property
    def merged_count(self) -> int:
        """How many rounds are merged."""
        with self._database.read() as connection:
            return int(connection.execute(sql.select(sql.func.count()).select_from(rounds_table)).scalar_one())

    def state_digest(self, rounds: int) -> str:
        """Returns the digest of the state after so many rounds, as it was when it was made; "" where nobody knows."""
        if not rounds:
            return "" if self.start is None else self.start.digest
        with self._database.read() as connection:
            row = connection.execute(sql.select(rounds_table).where(rounds_table.c.round == rounds)).one_or_none()
            return "" if row is None else self._merged(row).digest

    @property
    def start(self) -> MergedRound | None:
        """The adapter before the first round; None where it was not made yet."""
        text = self._database.get_meta("start")
        try:
            return None if text is None else msgspec.json.decode(text, type=MergedRound)
        except msgspec.MsgspecError as error:
            raise damaged(self.directory, f"its start does not decode: {error}") from error

    def keep_start(self, start: MergedRound) -> None:
        """Keeps what the adapter before the first round is, once and for all."""
        if self.start is None:
            self._database.set_meta("start", msgspec.json.encode(start).decode())

    @property
    def last_round(self) -> int:
        """The last round that is over, 0 before the first: merged, or given up."""
        with self._database.read() as connection:
            return int(connection.execute(sql.select(sql.func.max(rounds_table.c.round))).scalar_one() or 0)

    def check_mark(self) -> None:
        """Looks whether the store is behind what it was.

        Raises:
            StoreError: it has lost writes.
        """
        self._database.check_mark()

    def check(self) -> None:
        """Looks at every page and every row.

        Raises:
            StoreError: something is not what was written, or is gone.
        """
        self._database.check_pages()
        self._database.check_meta()
        self._check_passport()
        self.answers()
        self.merged_rounds()
        for _ in self.journal():
            pass

    def _write_passport(self, identity: Mapping[str, Any]) -> None:
        with disk_trouble_told(self.directory):
            if read_passport(self.directory) is None:
                write_passport(self.directory, Passport(run=self.run, identity=dict(identity)))

    def _last(self) -> str:
        """Returns the digest of the last journal entry; "" before the first."""
        return self._database.get_meta("journal") or ""

    def _journalled(self, connection: sql.Connection, event: str, now_s: float) -> None:
        head = row_digest(self._database.meta(connection, "journal") or "", now_s, event)
        connection.execute(sql.insert(journal_table).values(now_s=now_s, event=event, digest=head))
        put_meta(connection, "journal", head)

    def _answer(self, row: sql.Row[Any]) -> Answer:
        if row.digest != row_digest(row.round, row.device, row.sha256, row.outcome, row.answer):
            raise damaged(self.directory, f"answer {row.sequence} is not what was written")
        return msgspec.json.decode(row.answer, type=Answer)

    def _merged(self, row: sql.Row[Any]) -> MergedRound:
        if row.digest != row_digest(row.round, row.merged):
            raise damaged(self.directory, f"the record of round {row.round} is not what was written")
        return msgspec.json.decode(row.merged, type=MergedRound)

    def _check_passport(self) -> None:
        """Refuses an empty store where there was a run: a file that was cut to nothing looks like a new one."""
        passport = read_passport(self.directory)
        if passport is not None and self._database.get_meta("run") != passport.run:
            raise damaged(self.directory, f"it knows nothing of run {passport.run}, which run.json names")

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        wanted = json.loads(json.dumps(identity))
        if self._database.get_meta("identity") is None:
            self._database.set_meta("identity", json.dumps(wanted, sort_keys=True))
            return
        changes = changed_settings(self.settings(), wanted)
        if changes:
            raise StoreError(
                f"the run in {self.directory} was begun with other settings ({'; '.join(changes[:3])}): "
                "take the change back, or give the new federation another run directory"
            )


def kept_settings(directory: Path) -> dict[str, Any]:
    """Returns the settings that a run was begun with: what `Store.open` was given as its identity.

    Raises:
        StoreError: there is no store, it has no settings yet, or it cannot be read.
    """
    with Store.reading(directory) as store:
        return store.settings()


def _insert_answer(connection: sql.Connection, answer: Answer) -> None:
    if not answer.received_unix_s:
        answer = msgspec.structs.replace(answer, received_unix_s=time.time())
    connection.execute(sql.insert(answers_table).values(**answer_values(answer)))


def answer_values(answer: Answer) -> dict[str, Any]:
    """Returns the columns of an answer's row."""
    text = msgspec.json.encode(answer).decode()
    digest = row_digest(answer.round, answer.device, answer.sha256, answer.outcome, text)
    columns = {"round": answer.round, "device": answer.device, "sha256": answer.sha256, "outcome": answer.outcome}
    return {**columns, "answer": text, "digest": digest}
