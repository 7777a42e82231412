"""The aggregator's durable memory: the journal of the round machine, every answer a device gave, every merged round.

When a method returns, its rows are on disk and survive `kill -9` and a power cut (SQLite in WAL
mode with full synchronisation). Each method is one transaction. An answer and the event it causes are written together,
so an update is either acknowledged and in the journal, or neither.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import sqlalchemy as sql
from sqlalchemy.exc import SQLAlchemyError

from edgefed.coordinator.events import Event
from edgefed.errors import StoreError
from edgefed.protocol.messages.manifest import Manifest
from edgefed.protocol.records import RoundRecord

__all__ = ["Answer", "MergedRound", "Outcome", "Store", "kept_settings"]

SCHEMA_VERSION = 1

Outcome = Literal["counted", "late", "dropped", "rejected", "evaluated"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a device delivered for a round, and what became of it.

    Attributes:
        round: the round it was made in.
        device: who delivered it.
        sha256: of the update's blob; "" for an evaluation.
        size_bytes: of the blob.
        outcome: `counted` in its own round, `late` in a later one, `dropped`, `rejected`, or `evaluated`.
        reason: why, where it was dropped or rejected.
        record: what the device said about the round.
        received_unix_s: the aggregator's wall clock.
    """

    round: int
    device: str
    sha256: str
    size_bytes: int
    outcome: Outcome
    reason: str = ""
    record: RoundRecord | None = None
    received_unix_s: float = 0.0


class MergedRound(msgspec.Struct, frozen=True, kw_only=True):
    """One merged round.

    Attributes:
        round: its number.
        manifest: the global adapter that came out, as the next round broadcasts it.
        devices: whose updates are in it, with the weight each had, normalised to a sum of one.
        norm: Frobenius norm of the whole global adapter.
        merge_s: seconds the merge took.
        broadcast_bytes, received_bytes: payload bytes sent and received while the round was open.
        opened_unix_s, merged_unix_s: the aggregator's wall clock.
    """

    round: int
    manifest: Manifest
    devices: dict[str, float]
    norm: float
    merge_s: float
    broadcast_bytes: int
    received_bytes: int
    opened_unix_s: float
    merged_unix_s: float


_metadata = sql.MetaData()
_meta = sql.Table(
    "meta",
    _metadata,
    sql.Column("key", sql.String(64), primary_key=True),
    sql.Column("value", sql.Text, nullable=False),
)
_journal = sql.Table(
    "journal",
    _metadata,
    sql.Column("sequence", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("now_s", sql.Float, nullable=False),
    sql.Column("event", sql.Text, nullable=False),
)
_answers = sql.Table(
    "answers",
    _metadata,
    sql.Column("sequence", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("round", sql.Integer, nullable=False),
    sql.Column("device", sql.String(64), nullable=False),
    sql.Column("sha256", sql.String(64), nullable=False),
    sql.Column("outcome", sql.String(16), nullable=False),
    sql.Column("answer", sql.Text, nullable=False),
    sql.UniqueConstraint("round", "device", "sha256"),
)
_rounds = sql.Table(
    "rounds",
    _metadata,
    sql.Column("round", sql.Integer, primary_key=True),
    sql.Column("merged", sql.Text, nullable=False),
)


class Store:
    """A run's store. Open it with `Store.open`, and close it.

    Only one process may have a store open: a second one is refused with the process id of the first.
    """

    def __init__(self, engine: sql.Engine, lock_file: int | None, directory: Path) -> None:
        self._engine = engine
        self._lock_file = lock_file
        self.directory = directory

    @classmethod
    def open(cls, directory: Path, identity: Mapping[str, Any]) -> Store:
        """Opens or creates the store of a run.

        Args:
            directory: the run's directory; made if it is not there.
            identity: what must not change while the run goes on (the settings). It is kept on first use and
                compared afterwards.

        Raises:
            StoreError: it is in use, unreadable, of another version, or was made with other settings.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock_file = _lock(directory / "store.lock")
        except OSError as error:
            raise StoreError(f"the run directory {directory} cannot be used: {error}") from error
        store = cls(_engine(directory / "store.sqlite"), lock_file, directory)
        try:
            store._check_version()
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
        path = directory / "store.sqlite"
        if not path.is_file():
            raise StoreError(f"{directory} has no store.sqlite: it is no run directory, or only a part of one")
        at_work = path.with_name("store.sqlite-wal").exists()
        # Where nobody is at work, reading must not leave a log behind, and works on a disk that cannot be written.
        read_only = {"uri": "true", **({"mode": "ro"} if at_work else {"immutable": "1"})}
        engine = sql.create_engine(sql.URL.create("sqlite", database=path.absolute().as_uri(), query=read_only))
        try:
            store = cls(engine, None, directory)
            store._refuse_other_version(store._get_meta("schema_version"))
            yield store
        finally:
            engine.dispose()

    def settings(self) -> dict[str, Any]:
        """Returns what `open` was given as identity when the run was begun.

        Raises:
            StoreError: the run has none yet, or they do not decode.
        """
        text = self._get_meta("identity")
        if text is None:
            raise StoreError(f"the store in {self.directory} cannot be read: it has no settings yet")
        try:
            settings: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise StoreError(
                f"the store in {self.directory} is damaged: its settings do not decode: {error}"
            ) from error
        return settings

    @property
    def run(self) -> str:
        """The id of this run, drawn when its store was made."""
        run = self._get_meta("run")
        if run is None:
            run = secrets.token_hex(8)
            self._set_meta("run", run)
        return run

    def close(self) -> None:
        """Closes the store and lets another process have it."""
        self._engine.dispose()
        if self._lock_file is not None:
            os.close(self._lock_file)

    def journal(self) -> Iterator[tuple[Event, float]]:
        """Yields every event with its time in seconds, in order.

        Raises:
            StoreError: an entry does not decode; everything before it has been yielded.
        """
        with self._reading() as connection:
            rows = connection.execute(sql.select(_journal).order_by(_journal.c.sequence))
            for row in rows:
                try:
                    event: Event = msgspec.json.decode(row.event, type=Event)
                except msgspec.MsgspecError as error:
                    raise StoreError(f"journal entry {row.sequence} in {self.directory} is damaged: {error}") from error
                yield event, row.now_s

    def append(self, event: Event, now_s: float, *, answer: Answer | None = None) -> None:
        """Adds an event to the journal, and the answer that caused it, in one transaction.

        Raises:
            StoreError: it could not be written (a full disk, say); nothing was.
        """
        text = msgspec.json.encode(event).decode()
        with self._writing() as connection:
            connection.execute(sql.insert(_journal).values(now_s=now_s, event=text))
            if answer is not None:
                _insert_answer(connection, answer)

    def add_answer(self, answer: Answer) -> None:
        """Keeps an answer that the round machine need not know of: one that was dropped or rejected."""
        with self._writing() as connection:
            _insert_answer(connection, answer)

    def find_answer(self, round_: int, device: str, sha256: str) -> Answer | None:
        """Returns what became of an update that was answered before, or None."""
        query = sql.select(_answers.c.answer).where(
            _answers.c.round == round_, _answers.c.device == device, _answers.c.sha256 == sha256
        )
        with self._reading() as connection:
            text = connection.execute(query).scalar_one_or_none()
            return None if text is None else msgspec.json.decode(text, type=Answer)

    def answers(self, round_: int | None = None) -> list[Answer]:
        """Returns the answers of one round, or all, in order of arrival."""
        query = sql.select(_answers.c.answer).order_by(_answers.c.sequence)
        if round_ is not None:
            query = query.where(_answers.c.round == round_)
        with self._reading() as connection:
            return [msgspec.json.decode(text, type=Answer) for text in connection.execute(query).scalars()]

    def count_rejected(self) -> int:
        """Returns how many updates were rejected so far."""
        query = sql.select(sql.func.count()).select_from(_answers).where(_answers.c.outcome == "rejected")
        with self._reading() as connection:
            return int(connection.execute(query).scalar_one())

    def add_merged(self, event: Event, now_s: float, merged: MergedRound) -> None:
        """Keeps a merged round together with the event that tells the round machine of it."""
        text = msgspec.json.encode(merged).decode()
        with self._writing() as connection:
            connection.execute(sql.insert(_journal).values(now_s=now_s, event=msgspec.json.encode(event).decode()))
            connection.execute(sql.insert(_rounds).values(round=merged.round, merged=text))

    def merged_rounds(self) -> list[MergedRound]:
        """Returns all merged rounds in order."""
        with self._reading() as connection:
            rows = connection.execute(sql.select(_rounds.c.merged).order_by(_rounds.c.round)).scalars()
            return [msgspec.json.decode(text, type=MergedRound) for text in rows]

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sql.Connection]:
        with self._errors_of_the_library("read"), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sql.Connection]:
        with self._errors_of_the_library("written"), self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def _errors_of_the_library(self, doing: str) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise StoreError(f"the store in {self.directory} cannot be {doing}: {cause}") from error
        except msgspec.MsgspecError as error:
            raise StoreError(f"the store in {self.directory} is damaged: {error}") from error

    def _check_version(self) -> None:
        with self._writing() as connection:
            _meta.create(connection, checkfirst=True)
        found = self._get_meta("schema_version")
        if found is None:
            self._set_meta("schema_version", str(SCHEMA_VERSION))
        else:
            self._refuse_other_version(found)
        with self._writing() as connection:
            _metadata.create_all(connection)

    def _refuse_other_version(self, found: str | None) -> None:
        if found != str(SCHEMA_VERSION):
            raise StoreError(
                f"the store in {self.directory} has version {found}, and this edgefed reads version {SCHEMA_VERSION}: "
                "use the edgefed that wrote it, or another run directory"
            )

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        wanted = json.loads(json.dumps(identity))
        if self._get_meta("identity") is None:
            self._set_meta("identity", json.dumps(wanted, sort_keys=True))
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

    def _get_meta(self, key: str) -> str | None:
        with self._reading() as connection:
            value = connection.execute(sql.select(_meta.c.value).where(_meta.c.key == key)).scalar_one_or_none()
        return None if value is None else str(value)

    def _set_meta(self, key: str, value: str) -> None:
        with self._writing() as connection:
            connection.execute(sql.insert(_meta).values(key=key, value=value))


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
        sql.insert(_answers).values(
            round=answer.round,
            device=answer.device,
            sha256=answer.sha256,
            outcome=answer.outcome,
            answer=msgspec.json.encode(answer).decode(),
        )
    )


def _engine(path: Path) -> sql.Engine:
    engine = sql.create_engine(sql.URL.create("sqlite", database=str(path)))

    @sql.event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    return engine


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise StoreError(f"another aggregator (process {owner}) uses the run directory {path.parent}") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
