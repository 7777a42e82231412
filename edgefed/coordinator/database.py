"""A run's SQLite file: its tables, who may open it, and transactions whose errors say which store they are about."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sql
from sqlalchemy.exc import SQLAlchemyError

from edgefed.coordinator.crash_points import AtWrite, crash_point
from edgefed.coordinator.run_directory import MAKE_ROOM
from edgefed.errors import StoreError

__all__ = ["SCHEMA_VERSION", "Database", "answers_table", "journal_table", "rounds_table"]

SCHEMA_VERSION = 1
_NO_ROOM = ("database or disk is full", "disk I/O error")

metadata = sql.MetaData()
meta_table = sql.Table(
    "meta",
    metadata,
    sql.Column("key", sql.String(64), primary_key=True),
    sql.Column("value", sql.Text, nullable=False),
)
journal_table = sql.Table(
    "journal",
    metadata,
    sql.Column("sequence", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("now_s", sql.Float, nullable=False),
    sql.Column("event", sql.Text, nullable=False),
)
answers_table = sql.Table(
    "answers",
    metadata,
    sql.Column("sequence", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("round", sql.Integer, nullable=False),
    sql.Column("device", sql.String(64), nullable=False),
    sql.Column("sha256", sql.String(64), nullable=False),
    sql.Column("outcome", sql.String(16), nullable=False),
    sql.Column("answer", sql.Text, nullable=False),
    sql.UniqueConstraint("round", "device", "sha256"),
)
rounds_table = sql.Table(
    "rounds",
    metadata,
    sql.Column("round", sql.Integer, primary_key=True),
    sql.Column("merged", sql.Text, nullable=False),
)


class Database:
    """The tables of one run. Open it with `Database.open` or `Database.reading`, and close it."""

    def __init__(
        self, engine: sql.Engine, lock_file: int | None, directory: Path, at_write: AtWrite = lambda _: None
    ) -> None:
        self._engine = engine
        self._lock_file = lock_file
        self._at_write = at_write
        self._fence: str | None = None
        self.directory = directory

    @classmethod
    def open(cls, directory: Path, at_write: AtWrite | None = None) -> Database:
        """Opens or creates the database of a run, for one process at a time.

        Args:
            directory: the run's directory.
            at_write: called before and after each durable write; without it, the environment says whether to die there.

        Raises:
            StoreError: it is in use (the message has the process id), unreadable, or of another version.
        """
        at_write = at_write or crash_point(os.environ)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock_file = _lock(directory / "store.lock")
        except OSError as error:
            raise StoreError(f"the run directory {directory} cannot be used: {error}") from error
        database = cls(_engine(directory / "store.sqlite"), lock_file, directory, at_write)
        try:
            database._check_version()
            database._take_over()
        except BaseException:
            database.close()
            raise
        return database

    @classmethod
    def reading(cls, directory: Path) -> Database:
        """Opens the database of a run for reading only, whether or not an aggregator is at work in it.

        It takes no lock and changes nothing, not even on a disk that could be written.

        Raises:
            StoreError: there is none, or it is of another version or cannot be read.
        """
        path = directory / "store.sqlite"
        if not path.is_file():
            raise StoreError(f"{directory} has no store.sqlite: it is no run directory, or only a part of one")
        at_work = path.with_name("store.sqlite-wal").exists()
        # Where nobody is at work, reading must not leave a log behind, and works on a disk that cannot be written.
        read_only = {"uri": "true", **({"mode": "ro"} if at_work else {"immutable": "1"})}
        engine = sql.create_engine(sql.URL.create("sqlite", database=path.absolute().as_uri(), query=read_only))
        database = cls(engine, None, directory)
        try:
            database._refuse_other_version(database.get_meta("schema_version"))
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Closes it and lets another process have it."""
        self._engine.dispose()
        if self._lock_file is not None:
            os.close(self._lock_file)

    @contextlib.contextmanager
    def read(self) -> Iterator[sql.Connection]:
        """Gives a connection for reading.

        Raises:
            StoreError: it cannot be read, or what it holds does not decode.
        """
        with self._errors_of_the_library("read"), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sql.Connection]:
        """Gives a connection whose changes are on disk, all or none, when the block ends.

        Raises:
            StoreError: they could not be written (a full disk, or another process has opened it since); nothing was.
        """
        self._at_write("before")
        with self._errors_of_the_library("written"), self._engine.begin() as connection:
            self._check_fence(connection)
            yield connection
        self._at_write("after")

    def get_meta(self, key: str) -> str | None:
        """Returns a named value, or None."""
        with self.read() as connection:
            value = connection.execute(
                sql.select(meta_table.c.value).where(meta_table.c.key == key)
            ).scalar_one_or_none()
        return None if value is None else str(value)

    def set_meta(self, key: str, value: str) -> None:
        """Keeps a named value, once and for all."""
        with self.write() as connection:
            connection.execute(sql.insert(meta_table).values(key=key, value=value))

    @contextlib.contextmanager
    def _errors_of_the_library(self, doing: str) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause = str(getattr(error, "orig", None) or error)
            full = f"; {MAKE_ROOM}" if cause in _NO_ROOM else ""
            raise StoreError(f"the store in {self.directory} cannot be {doing}: {cause}{full}") from error
        except (msgspec.MsgspecError, RecursionError) as error:
            raise StoreError(f"the store in {self.directory} is damaged: {error}") from error

    def _check_version(self) -> None:
        with self.write() as connection:
            meta_table.create(connection, checkfirst=True)
        found = self.get_meta("schema_version")
        if found is None:
            self.set_meta("schema_version", str(SCHEMA_VERSION))
        else:
            self._refuse_other_version(found)
        with self.write() as connection:
            metadata.create_all(connection)

    def _take_over(self) -> None:
        """Shuts out whoever opened it before: a lock on a file holds little on a network's file system."""
        fence = secrets.token_hex(8)
        with self.write() as connection:
            taken = connection.execute(sql.update(meta_table).where(meta_table.c.key == "fence").values(value=fence))
            if not taken.rowcount:
                connection.execute(sql.insert(meta_table).values(key="fence", value=fence))
        self._fence = fence

    def _check_fence(self, connection: sql.Connection) -> None:
        """Refuses to write where another process has the fence; as an update, it also keeps that from changing now."""
        if self._fence is None:
            return
        ours = sql.and_(meta_table.c.key == "fence", meta_table.c.value == self._fence)
        if not connection.execute(sql.update(meta_table).where(ours).values(value=self._fence)).rowcount:
            raise StoreError(
                f"another aggregator has opened the run directory {self.directory} since this one did: "
                "only one may work in it, and this one ends"
            )

    def _refuse_other_version(self, found: str | None) -> None:
        if found != str(SCHEMA_VERSION):
            raise StoreError(
                f"the store in {self.directory} has version {found}, and this edgefed reads version {SCHEMA_VERSION}: "
                "use the edgefed that wrote it, or another run directory"
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
