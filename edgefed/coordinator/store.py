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
from edgefed.coordinator.database import Database, answers_table, journal_table, rounds_table
from edgefed.coordinator.events import Event
from edgefed.errors import StoreError

__all__ = ["Store", "kept_settings"]


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
            StoreError: it is in use, unreadable, of another version, or was made with other settings.
        """
        store = cls(Database.open(directory, at_write))
        try:
            store._check_identity(identity)
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
            raise StoreError(
                f"the store in {self.directory} is damaged: its settings do not decode: {error}"
            ) from error
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
        with self._database.read() as connection:
            rows = connection.execute(sql.select(journal_table).order_by(journal_table.c.sequence))
            for row in rows:
                try:
                    event: Event = msgspec.json.decode(row.event, type=Event)
                except (msgspec.MsgspecError, RecursionError) as error:
                    raise StoreError(f"journal entry {row.sequence} in {self.directory} is damaged: {error}") from error
                yield event, row.now_s

    def append(self, event: Event, now_s: float, *, answer: Answer | None = None) -> None:
        """Adds an event to the journal, and the answer that caused it, in one transaction.

        Raises:
            StoreError: it could not be written (a full disk, say); nothing was.
        """
        text = msgspec.json.encode(event).decode()
        with self._database.write() as connection:
            connection.execute(sql.insert(journal_table).values(now_s=now_s, event=text))
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
        query = sql.select(answers_table.c.answer).where(
            answers_table.c.round == round_, answers_table.c.device == device, answers_table.c.sha256 == sha256
        )
        with self._database.read() as connection:
            text = connection.execute(query).scalar_one_or_none()
            return None if text is None else msgspec.json.decode(text, type=Answer)

    def answers(self, round_: int | None = None) -> list[Answer]:
        """Returns the answers of one round, or all, in order of arrival."""
        query = sql.select(answers_table.c.answer).order_by(answers_table.c.sequence)
        if round_ is not None:
            query = query.where(answers_table.c.round == round_)
        with self._database.read() as connection:
            return [msgspec.json.decode(text, type=Answer) for text in connection.execute(query).scalars()]

    def count_rejected(self) -> int:
        """Returns how many updates were rejected so far."""
        query = sql.select(sql.func.count()).select_from(answers_table).where(answers_table.c.outcome == "rejected")
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def latest_rejected(self, count: int) -> list[Answer]:
        """Returns the last so many updates that were rejected, in order of arrival."""
        query = sql.select(answers_table.c.answer).where(answers_table.c.outcome == "rejected")
        with self._database.read() as connection:
            texts = connection.execute(query.order_by(answers_table.c.sequence.desc()).limit(count)).scalars().all()
            return [msgspec.json.decode(text, type=Answer) for text in reversed(texts)]

    def add_merged(self, event: Event, now_s: float, merged: MergedRound) -> None:
        """Keeps a merged round together with the event that tells the round machine of it."""
        journalled = msgspec.json.encode(event).decode()
        text = msgspec.json.encode(merged).decode()
        with self._database.write() as connection:
            connection.execute(sql.insert(journal_table).values(now_s=now_s, event=journalled))
            connection.execute(sql.insert(rounds_table).values(round=merged.round, merged=text))
        self._tell(merged)

    def merged_rounds(self) -> list[MergedRound]:
        """Returns all merged rounds in order."""
        with self._database.read() as connection:
            rows = connection.execute(sql.select(rounds_table.c.merged).order_by(rounds_table.c.round)).scalars()
            return [msgspec.json.decode(text, type=MergedRound) for text in rows]

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        wanted = json.loads(json.dumps(identity))
        if self._database.get_meta("identity") is None:
            self._database.set_meta("identity", json.dumps(wanted, sort_keys=True))
            return
        kept = self.settings()
        before, now = _by_dotted_key(kept), _by_dotted_key(wanted)
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if changed:
            details = "; ".join(f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in changed[:3])
            raise StoreError(
                f"the run in {self.directory} was begun with other settings ({details}): "
                "take the change back, or give the new federation another run directory"
            )


def kept_settings(directory: Path) -> dict[str, Any]:
    """Returns the settings that a run was begun with: what `Store.open` was given as its identity.

    Raises:
        StoreError: there is no store, it has no settings yet, or it cannot be read.
    """
    with Store.reading(directory) as store:
        return store.settings()


def _by_dotted_key(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _by_dotted_key(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _insert_answer(connection: sql.Connection, answer: Answer) -> None:
    if not answer.received_unix_s:
        answer = msgspec.structs.replace(answer, received_unix_s=time.time())
    connection.execute(
        sql.insert(answers_table).values(
            round=answer.round,
            device=answer.device,
            sha256=answer.sha256,
            outcome=answer.outcome,
            answer=msgspec.json.encode(answer).decode(),
        )
    )
