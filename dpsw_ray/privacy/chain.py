"""An append-only log in one SQLite file, each entry hashed together with all before it.

Every read goes through the chain, so nothing is ever worked out from rows that somebody changed. The hash of an
entry is SHA-256 of the hash before it followed by the JSON array [seq, kind, body, release_id] (no spaces, keys
of `body` sorted); the first entry follows 64 zeros. An export holds every row, so anybody can recompute it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpsw_ray.errors import UserError, explain_os_error

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
        if (row.seq, row.prev_hash) != (place, head) or row.entry_hash != _hash(*row[:5]):
            return place
        head = row.entry_hash
    return None


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
    """The log at `path`, created with its folders where missing, readable by its owner only.

    Instances hold no connection: they may be pickled, shared by threads and used across forks. One writer
    at a time; others wait.

    Args:
        path: the SQLite file, absolute.
        create: False leaves a missing or empty file as it is and refuses it.
        timeout_s: longest wait for other writers.

    Raises:
        UserError: the file cannot be created, is missing, or is no ledger.
    """

    def __init__(self, path: Path, create: bool, timeout_s: float) -> None:
        self.path = path
        self.timeout_s = timeout_s
        try:
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            elif not path.exists():
                raise UserError(
                    f"There is no privacy ledger at {path}: the first run or `dpsw ledger register` makes it; "
                    "--ledger FILE names another."
                )
        except OSError as error:
            raise UserError(f"The privacy ledger cannot be opened. {explain_os_error(error)}") from None
        with self.transaction(write=False) as connection:
            empty = _is_empty(connection)
        if empty and not create:
            raise UserError(f"{path} is an empty file, not a privacy ledger: --ledger FILE names another.")
        if empty:
            with self.transaction(write=True) as connection:
                if _is_empty(connection):  # another process may have been first
                    for statement in _statements(_SCHEMA):
                        connection.execute(statement)

    @contextlib.contextmanager
    def transaction(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        """One transaction on a connection of its own; commits where the body ends without an error."""
        try:
            connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode=rw", uri=True, timeout=self.timeout_s, isolation_level=None
            )
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
                    yield connection
                except BaseException:
                    connection.rollback()
                    raise
                connection.commit()
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise UserError(self._explain(error)) from None

    def rows(self, connection: sqlite3.Connection) -> tuple[Row, ...]:
        """All entries, oldest first.

        Raises:
            UserError: naming the first entry that was changed or cut.
        """
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
        """Adds an entry after `rows`, all there are, inside the caller's transaction."""
        head, seq, body = head_of(rows), len(rows) + 1, _canonical(values)
        row = Row(seq, kind, body, release_id, head, _hash(seq, kind, body, release_id, head))
        connection.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)", row)

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
        return f"The privacy ledger {self.path} cannot be used: {error}."


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
