"""Turn errors of SQLite and invalid stored values into a `StoreError` with the file and a fix."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from push_to_poll_client._exceptions import StoreError, StoreUnavailable
from push_to_poll_client._validation import one_line

BUSY_TIMEOUT: Final = 5.0  # seconds to wait for another program that writes to the file; readers do not lock it

_MAY_PASS = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,
}
"""Primary codes of errors that may go away by themselves. SQLITE_NOMEM becomes a MemoryError."""

_STAYS = {sqlite3.SQLITE_IOERR | 32 << 8, sqlite3.SQLITE_IOERR | 33 << 8}
"""SQLITE_IOERR_DATA and SQLITE_IOERR_CORRUPTFS: a damaged disk. Some versions of the module lack the constants."""

_WAITED = f"for {BUSY_TIMEOUT:g} s"

_ADVICE_WHEN_OPENED = {
    sqlite3.SQLITE_BUSY: f"another program has kept a transaction open or the file locked {_WAITED}: end it",
    sqlite3.SQLITE_CANTOPEN: "choose a file that this process can create or write",
}

_ADVICE = {
    sqlite3.SQLITE_BUSY: f"another program has kept a write transaction open or the file locked {_WAITED}: end it",
    sqlite3.SQLITE_BUSY
    | 1
    << 8: f"another program has been repairing the file after a crash {_WAITED}: wait until it ends",  # _RECOVERY
    sqlite3.SQLITE_BUSY | 2 << 8: "another program wrote to the file after this transaction began",  # _SNAPSHOT
    sqlite3.SQLITE_CANTOPEN: "the directory may be missing, or too many files are open",
    sqlite3.SQLITE_CORRUPT: "the file is damaged or cut off: restore a copy, or move it away to start over",
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_LOCKED: "another statement on the store's connection is not finished: close its cursor",
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database: choose another file",
    sqlite3.SQLITE_READONLY: "make the file and its directory writable",
}

_READ_ERRORS = (sqlite3.Error, UnicodeError, msgspec.ValidationError)


@contextmanager
def wrap_sqlite_errors(path: str, *, opening: bool = False) -> Iterator[None]:
    """Convert errors of the `with` body by `store_error`."""
    try:
        yield
    except _READ_ERRORS as error:
        raise store_error(path, error, opening=opening) from error


def store_error(path: str, error: BaseException, *, opening: bool = False) -> BaseException:
    """Convert an error of SQLite or of a stored value to a `StoreError`; return others unchanged."""
    if not isinstance(error, _READ_ERRORS):
        return error
    if isinstance(error, sqlite3.Error):
        # The lower byte is the primary code (https://www.sqlite.org/rescode.html); errors of the module have none.
        extended = getattr(error, "sqlite_errorcode", 0)
        code = extended & 0xFF
        table = {**_ADVICE, **_ADVICE_WHEN_OPENED} if opening else _ADVICE
        advice = table.get(extended) or table.get(code, "check the disk and the other programs that use the file")
        may_pass = code in _MAY_PASS and extended not in _STAYS
        if code == sqlite3.SQLITE_CANTOPEN and not opening:  # a temporary file
            may_pass = True
        kind = StoreUnavailable if may_pass else StoreError
        # SQLite's message may quote text of the file: a schema that it cannot read.
        made = kind(f"{path} cannot be used: {one_line(str(error))}; {advice}")
    else:
        made = StoreError(damage_message(path, "it contains a value that this library does not write"))
    made.__cause__ = error
    return made


def damage_message(path: str, why: str) -> str:
    """Build the error text for a file that must be replaced by a copy."""
    return f"{path} is damaged: {why}; restore a copy, or move it away to start over"
