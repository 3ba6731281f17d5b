"""An append-only log in one SQLite file, each entry hashed together with all before it.

Every read goes through the chain, so nothing is ever worked out from rows that somebody changed. The hash of an
entry is SHA-256 of the hash before it followed by the JSON array [seq, kind, body, release_id] (no spaces, keys
of `body` sorted); the first entry follows 64 zeros. An export holds every row, so anybody can recompute it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpsw_ray.base.errors import UserError, explain_os_error

__all__ = ["Chain", "Row", "first_break", "head_of", "rows_from_export", "rows_to_export"]

_APPLICATION_ID = 0x64707377  # "dpsw": tells a ledger from any other SQLite file
_GENESIS = "0" * 64
_SCHEMA = f"""
CREATE TABLE log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    release_id TEXT UNIQUE,
    prev_hash TEXT NOT NULL UNIQUE,
    entry_hash TEXT NOT NULL UNIQUE
);
CREATE TRIGGER log_no_update BEFORE UPDATE ON log BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER log_no_delete BEFORE DELETE ON log BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
PRAGMA application_id = {_APPLICATION_ID};
"""
_EXPORT = "dpsw_ray ledger export 1"
_RULE = (
    "entry_hash = SHA-256 of prev_hash followed by the JSON array [seq, kind, body, release_id] without spaces, "
    "non-ASCII characters escaped; prev_hash of the first row is 64 zeros"
)


class Row(NamedTuple):
    """One entry as it is stored; `body` is JSON text, kept to the letter because the hash covers it."""

    seq: int
    kind: str
    body: str
    release_id: str | None
    prev_hash: str
    entry_hash: str


def first_break(rows: Iterable[Row]) -> int | None:
    """The place, from 1, of the first row that does not follow from the one before it; None for a whole chain."""
    head = _GENESIS
    for place, row in enumerate(rows, 1):
        if not _has_types(row):  # a cell of SQLite may hold anything, and so may an export
            return place
        if (row.seq, row.prev_hash) != (place, head) or row.entry_hash != _hash(*row[:5]):
            return place
        head = row.entry_hash
    return None


def _has_types(row: Row) -> bool:
    texts = [row.kind, row.body, row.prev_hash, row.entry_hash]
    texts += [] if row.release_id is None else [row.release_id]
    return type(row.seq) is int and all(type(text) is str for text in texts)


def head_of(rows: Sequence[Row]) -> str:
    """The hash that the next entry will build on."""
    return rows[-1].entry_hash if rows else _GENESIS


def rows_to_export(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything needed to recompute the chain, as plain values."""
    return {
        "format": _EXPORT,
        "rule": _RULE,
        "entries": len(rows),
        "head": head_of(rows),
        "rows": [row._asdict() for row in rows],
    }


def rows_from_export(path: Path) -> tuple[Row, ...]:
    """Reads an export back.

    Raises:
        UserError: it cannot be read, is no export, or is itself no whole chain.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != _EXPORT:
            raise KeyError("format")
        rows = tuple(Row(**row) for row in stored["rows"])
        broken = first_break(rows)
        complete = (stored["entries"], stored["head"]) == (len(rows), head_of(rows))
    except OSError as error:
        raise UserError(f"The export cannot be read. {explain_os_error(error)}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{path} is no export of a privacy ledger (`dpsw ledger export` writes one)."
        ) from None
    if broken is not None:
        raise UserError(
            f"The export {path} was changed: entry {broken} does not follow from the one before it."
        )
    if not rows:
        raise UserError(f"The export {path} has no entry: it pins nothing.")
    if not complete:
        raise UserError(f"The export {path} was changed: it says it has other entries than it has.")
    return rows


class Chain:
    """The log at `path`, created with its folders by its first entry where missing, readable by its owner only.

    Instances hold no connection: they may be pickled, shared by threads and used across forks. One writer
    at a time; others wait.

    Args:
        path: the SQLite file, absolute.
        create: False refuses a missing or empty file.
        timeout_s: longest wait for other writers.

    Raises:
        UserError: the file cannot be created, is missing, or is no ledger.
    """

    def __init__(self, path: Path, create: bool, timeout_s: float) -> None:
        self.path = path
        self.create = create
        self.timeout_s = timeout_s
        try:
            _check_kind(path, create)
            if create:
                _check_room(path)
        except OSError as error:
            raise UserError(f"The privacy ledger cannot be opened. {explain_os_error(error)}") from None
        with self.transaction(write=False) as connection:
            if _is_empty(connection) and not create:
                raise UserError(
                    f"{path} is an empty file, not a privacy ledger: --ledger FILE names another."
                )

    def _connect(self, write: bool) -> sqlite3.Connection:
        """A connection to the file, made with its folders where something is going to be written."""
        if write and self.create:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            except OSError as error:
                raise UserError(f"The privacy ledger cannot be opened. {explain_os_error(error)}") from None
        elif self.create and not self.path.exists():  # nothing is written yet, and asking makes no file
            return sqlite3.connect(":memory:", isolation_level=None)
        return sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw", uri=True, timeout=self.timeout_s, isolation_level=None
        )

    @contextlib.contextmanager
    def transaction(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        """One transaction on a connection of its own; commits where the body ends without an error."""
        try:
            connection = self._connect(write)
            try:
                # EXTRA is FULL plus an fsync of the folder after the rollback journal is removed: without it
                # a power cut just after the commit could bring the journal back and undo the charge.
                connection.execute("PRAGMA synchronous = EXTRA")
                connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    if _is_foreign(connection):
                        raise UserError(
                            f"{self.path} is a SQLite file of another program, not a privacy ledger."
                        )
                    if write and _is_empty(connection):
                        for statement in _statements(_SCHEMA):
                            connection.execute(statement)
                    yield connection
                except BaseException:
                    connection.rollback()
                    raise
                connection.commit()
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise UserError(self._explain(error)) from None
        except UnicodeDecodeError:  # SQLite's own message quotes what it found
            raise UserError(_PROBLEMS["SQLITE_CORRUPT"].format(path=self.path)) from None

    def rows(self, connection: sqlite3.Connection) -> tuple[Row, ...]:
        """All entries, oldest first.

        Raises:
            UserError: naming the first entry that was changed or cut; or tables, views or triggers are not those of a
                ledger, and what is written might not stay, or what is read not be what was written.
        """
        if _is_empty(connection):
            return ()
        cursor = connection.execute(
            "SELECT seq, kind, body, release_id, prev_hash, entry_hash FROM log ORDER BY seq"
        )
        rows = tuple(map(Row._make, cursor))
        broken = first_break(rows)
        if broken is not None:
            raise self._tampered(f"entry {broken} does not follow from the one before it")
        written = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'log'").fetchone()
        if written is not None and written[0] != len(rows):
            raise self._tampered(f"entry {len(rows) + 1} of {written[0]} is missing")
        if (found := _schema(connection)) != _made_schema():
            names = sorted({name for _, name, _ in found ^ _made_schema()})
            raise self._tampered(f"its tables and triggers are not those of a ledger ({', '.join(names)})")
        return rows

    def check_file(self, connection: sqlite3.Connection) -> None:
        """SQLite's own check of every page.

        Raises:
            UserError: the file is damaged.
        """
        problem = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if problem != "ok":
            raise UserError(f"The privacy ledger {self.path} is damaged: {problem}.")

    @staticmethod
    def append(
        connection: sqlite3.Connection,
        rows: Sequence[Row],
        kind: str,
        values: Mapping[str, Any],
        release_id: str | None = None,
    ) -> None:
        """Adds an entry after `rows`, all there are, inside the caller's transaction, and reads it back."""
        head, seq, body = head_of(rows), len(rows) + 1, _canonical(values)
        row = Row(seq, kind, body, release_id, head, _hash(seq, kind, body, release_id, head))
        connection.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)", row)
        stored = connection.execute(
            "SELECT seq, kind, body, release_id, prev_hash, entry_hash FROM log WHERE seq = ?", (seq,)
        ).fetchone()
        if stored != row:
            raise sqlite3.DatabaseError("what was written to it did not stay")

    def _tampered(self, what: str) -> UserError:
        return UserError(
            f"The privacy ledger {self.path} was changed after the fact: {what}. Nothing is charged to it or "
            "read from it; restore a copy."
        )

    def _explain(self, error: sqlite3.Error) -> str:
        code = getattr(error, "sqlite_errorname", "")
        for prefix, sentence in _PROBLEMS.items():
            if code.startswith(prefix):
                return sentence.format(path=self.path, folder=self.path.parent, timeout=self.timeout_s)
        return f"The privacy ledger {self.path} cannot be used: {' '.join(str(error).split())}."


_PROBLEMS = {
    "SQLITE_BUSY": "The privacy ledger {path} stayed locked by another process for {timeout:g} s: nothing "
    "was charged; wait for that process or end it.",
    "SQLITE_LOCKED": "The privacy ledger {path} is locked by another process: nothing was charged.",
    "SQLITE_READONLY": "The privacy ledger {path} or its folder {folder} is read-only: nothing was charged; "
    "make both writable or name another file under paths.ledger.",
    "SQLITE_CANTOPEN": "The privacy ledger {path} cannot be opened: its folder {folder} must exist and "
    "be writable.",
    "SQLITE_FULL": "The disk of the privacy ledger {path} is full: nothing was charged; free some space.",
    "SQLITE_IOERR": "The privacy ledger {path} could not be read or written (full or failing disk): the last "
    "charge may not be in it, so nothing may be released on it.",
    "SQLITE_NOTADB": "{path} is not a privacy ledger (not a SQLite file): name another file under "
    "paths.ledger.",
    "SQLITE_CORRUPT": "The privacy ledger {path} is damaged: restore a copy; its totals cannot be trusted.",
}


def _check_kind(path: Path, create: bool) -> None:
    """Refuses what is no regular file: to open a FIFO or a device waits for ever, or changes something."""
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        if create:
            return
        raise UserError(
            f"There is no privacy ledger at {path}: the first run or `dpsw ledger register` makes it; "
            "--ledger FILE names another."
        ) from None
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "no regular file"
        raise UserError(
            f"The privacy ledger cannot be opened: {path} is {what}; name a file under paths.ledger, or with "
            "--ledger FILE."
        )


def _check_room(path: Path) -> None:
    """Refuses a place where the first entry could not make the file, or add to it: before anything is computed."""
    place = next(place for place in (path, *path.parents) if place.exists())
    if place != path and not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    if not os.access(place, os.W_OK if place == path else os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def _schema(connection: sqlite3.Connection) -> frozenset[tuple[str, str, str | None]]:
    """Type, name and text of everything that the file is made of."""
    return frozenset(connection.execute("SELECT type, name, sql FROM sqlite_master"))


@functools.cache
def _made_schema() -> frozenset[tuple[str, str, str | None]]:
    """Of a ledger that this program made."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in _statements(_SCHEMA):
            connection.execute(statement)
        return _schema(connection)


def _is_empty(connection: sqlite3.Connection) -> bool:
    return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _is_foreign(connection: sqlite3.Connection) -> bool:
    if connection.execute("PRAGMA application_id").fetchone()[0] == _APPLICATION_ID:
        return False
    return not _is_empty(connection)


def _canonical(values: Any) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(seq: int, kind: str, body: str, release_id: str | None, previous: str) -> str:
    return hashlib.sha256((previous + _canonical([seq, kind, body, release_id])).encode()).hexdigest()


def _statements(script: str) -> Iterator[str]:
    """The statements of `script` one by one: `executescript` would commit the transaction around them."""
    statement = ""
    for line in script.strip().splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
