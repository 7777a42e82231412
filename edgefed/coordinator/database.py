"""A run's SQLite file: its tables, who may open it, and transactions whose errors say which store they are about."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sql
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import SQLAlchemyError

from edgefed.coordinator.crash_points import AtWrite, crash_point
from edgefed.coordinator.digests import row_digest
from edgefed.coordinator.mark import Mark
from edgefed.coordinator.run_directory import MAKE_ROOM, damaged
from edgefed.coordinator.tables import SCHEMA_VERSION, meta_table, metadata
from edgefed.errors import StoreError

__all__ = ["MARK", "Database", "OtherVersion", "RunInUse", "engine_of", "lock_run", "put_meta"]

MARK = "store.mark"

_DAMAGED = ("malformed", "not a database", "no such table", "no such column", "unsupported file format", "decode")
"""What SQLite says of a file that is not what it wrote, among other things."""
_NO_ROOM = ("database or disk is full", "disk I/O error")


class OtherVersion(StoreError):
    """The store was written by another version of edgefed, which is no damage."""


class RunInUse(StoreError):
    """Another process has the run directory.

    Attributes:
        owner: its process id, as far as it is known.
    """

    def __init__(self, directory: Path, owner: str) -> None:
        super().__init__(f"another aggregator (process {owner}) uses the run directory {directory}")
        self.owner = owner


class Database:
    """The tables of one run. Open it with `Database.open` or `Database.reading`, and close it."""

    def __init__(
        self, engine: sql.Engine, lock_file: int | None, directory: Path, at_write: AtWrite = lambda _: None
    ) -> None:
        self._engine = engine
        self._lock_file = lock_file
        self._at_write = at_write
        self._fence: str | None = None
        self._mark: Mark | None = None
        self.directory = directory

    @classmethod
    def open(cls, directory: Path, at_write: AtWrite | None = None) -> Database:
        """Opens or creates the database of a run, for one process at a time.

        Args:
            directory: the run's directory.
            at_write: called before and after each durable write; without it, the environment says whether to die there.

        Raises:
            StoreError: it is in use (the message has the process id), unreadable, damaged, or of another version.
        """
        at_write = at_write or crash_point(os.environ)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock_file = lock_run(directory)
        except OSError as error:
            raise StoreError(f"the run directory {directory} cannot be used: {error.strerror}") from error
        path = directory / "store.sqlite"
        if not path.exists() and Mark.read(directory / MARK):
            os.close(lock_file)
            raise damaged(directory, "store.sqlite is gone")
        database = cls(engine_of(path), lock_file, directory, at_write)
        try:
            database.check_pages()
            database._check_version()
            database.check_mark()
            database._keep_mark()
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
            database._refuse_other_version(database._found_version())
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Closes it and lets another process have it."""
        self._engine.dispose()
        if self._mark is not None:
            self._mark.close()
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
            writes = self._count(connection)
        if self._mark is not None:
            self._mark.advance(writes)
        self._at_write("after")

    def get_meta(self, key: str) -> str | None:
        """Returns a named value, or None.

        Raises:
            StoreError: it cannot be read, or is not what was written.
        """
        with self.read() as connection:
            return self.meta(connection, key)

    def set_meta(self, key: str, value: str) -> None:
        """Keeps a named value."""
        with self.write() as connection:
            put_meta(connection, key, value)

    def check_pages(self) -> None:
        """Has SQLite look at all its pages.

        Raises:
            StoreError: they do not hang together.
        """
        with self.read() as connection:
            said = connection.execute(sql.text("PRAGMA integrity_check(1)")).scalar_one()
        if said != "ok":
            raise damaged(self.directory, f"SQLite finds: {said}".replace("\n", " "))

    def check_meta(self) -> None:
        """Looks at every named value.

        Raises:
            StoreError: one is not what was written.
        """
        with self.read() as connection:
            for key in connection.execute(sql.select(meta_table.c.key)).scalars().all():
                self.meta(connection, key)

    def meta(self, connection: sql.Connection, key: str) -> str | None:
        """Returns a named value as `get_meta`, on a connection that is open."""
        row = connection.execute(sql.select(meta_table).where(meta_table.c.key == key)).one_or_none()
        if row is None:
            return None
        if row.digest != row_digest(key, row.value):
            raise damaged(self.directory, f"its {key} is not what was written")
        return str(row.value)

    @contextlib.contextmanager
    def _errors_of_the_library(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            cause = str(getattr(error, "orig", None) or error)
            full = f"; {MAKE_ROOM}" if cause in _NO_ROOM else ""
            if any(word in cause for word in _DAMAGED):
                raise damaged(self.directory, f"it cannot be {doing}: {cause}") from error
            raise StoreError(f"the store in {self.directory} cannot be {doing}: {cause}{full}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise damaged(self.directory, str(error)) from error

    def _check_version(self) -> None:
        with self.write() as connection:
            meta_table.create(connection, checkfirst=True)
        found = self._found_version()
        if found is None:
            self.set_meta("schema_version", str(SCHEMA_VERSION))
        else:
            self._refuse_other_version(found)
        with self.write() as connection:
            metadata.create_all(connection)

    def _found_version(self) -> str | None:
        """Returns the version. Where and with which digest it is kept is the same in all versions from 2 on."""
        with self.read() as connection:
            columns = connection.execute(sql.text("SELECT name FROM pragma_table_info('meta')")).scalars().all()
            if columns == ["key", "value"]:
                return "1"
            return self.meta(connection, "schema_version")

    def check_mark(self) -> None:
        """Looks whether the store is behind what it was: SQLite drops the damaged end of its log without a word.

        Raises:
            StoreError: it is.
        """
        writes, marked = int(self.get_meta("writes") or 0), Mark.read(self.directory / MARK)
        if writes < marked:
            raise damaged(self.directory, f"it has lost its last {marked - writes} of {marked} writes")

    def _keep_mark(self) -> None:
        try:
            self._mark = Mark(self.directory / MARK)
        except OSError as error:
            raise StoreError(f"the run directory {self.directory} cannot be written: {error}; {MAKE_ROOM}") from error

    def _count(self, connection: sql.Connection) -> int:
        """Counts a write, in its own transaction, and returns how many there were."""
        if self._fence is None:
            return 0
        writes = int(self.meta(connection, "writes") or 0) + 1
        put_meta(connection, "writes", str(writes))
        return writes

    def _take_over(self) -> None:
        """Shuts out whoever opened it before: a lock on a file holds little on a network's file system."""
        fence = secrets.token_hex(8)
        with self.write() as connection:
            put_meta(connection, "fence", fence)
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
        if found is None:
            raise damaged(self.directory, "it has no version")
        if found != str(SCHEMA_VERSION):
            raise OtherVersion(
                f"the store in {self.directory} has version {found}, and this edgefed reads version {SCHEMA_VERSION}: "
                "use the edgefed that wrote it, or another run directory"
            )


def put_meta(connection: sql.Connection, key: str, value: str) -> None:
    """Keeps a named value, in place of an earlier one."""
    put = insert(meta_table).values(key=key, value=value, digest=row_digest(key, value))
    changed = {"value": put.excluded.value, "digest": put.excluded.digest}
    connection.execute(put.on_conflict_do_update(index_elements=["key"], set_=changed))


def engine_of(path: Path) -> sql.Engine:
    """Returns what connects to a store's file, made where it is not there; each commit is synced."""
    engine = sql.create_engine(sql.URL.create("sqlite", database=str(path)))

    @sql.event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    return engine


def lock_run(directory: Path) -> int:
    """Returns the open file that keeps others out of a run directory until it is closed.

    Raises:
        RunInUse: another process is in it.
        OSError: the file cannot be made.
    """
    path = directory / "store.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise RunInUse(directory, owner) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
