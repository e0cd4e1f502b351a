"""Errors of SQLite, and of what a file holds, as a `StoreError` that names the file and a remedy."""

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
"""Primary codes of errors that may pass without a change of the file or its directory. SQLITE_NOMEM is a
MemoryError."""

_STAYS = {sqlite3.SQLITE_IOERR | 32 << 8, sqlite3.SQLITE_IOERR | 33 << 8}
"""SQLITE_IOERR_DATA and SQLITE_IOERR_CORRUPTFS, which not every version of the module has: a damaged disk."""

_WAITED = f"for {BUSY_TIMEOUT:g} s another program has"

_ADVICE_WHEN_OPENED = {
    sqlite3.SQLITE_BUSY: f"{_WAITED} had a transaction open or has locked the whole file: let it end",
    sqlite3.SQLITE_CANTOPEN: "name a file that may be made or written",
}

_ADVICE = {
    sqlite3.SQLITE_BUSY: f"{_WAITED} had a write transaction open or has locked the whole file: let it end",
    sqlite3.SQLITE_BUSY | 1 << 8: f"{_WAITED} been repairing it after a crash: let it end",  # _RECOVERY
    sqlite3.SQLITE_BUSY | 2 << 8: "another program wrote to it since this transaction began",  # _SNAPSHOT
    sqlite3.SQLITE_CANTOPEN: "its directory may be gone, or too many files are open",
    sqlite3.SQLITE_CORRUPT: "it is damaged or was cut off: put back a copy, or move it away to begin anew",
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_LOCKED: "another statement on the store's connection is not finished: close its cursor",
    sqlite3.SQLITE_NOTADB: "it is no SQLite database: name another file",
    sqlite3.SQLITE_READONLY: "make it and its directory writable",
}

_READ_ERRORS = (sqlite3.Error, UnicodeError, msgspec.ValidationError)


@contextmanager
def wrap_sqlite_errors(path: str, *, opening: bool = False) -> Iterator[None]:
    """Raise errors of the `with` body as `store_error` returns them."""
    try:
        yield
    except _READ_ERRORS as error:
        raise store_error(path, error, opening=opening) from error


def store_error(path: str, error: BaseException, *, opening: bool = False) -> BaseException:
    """Make a `StoreError` of an error of SQLite or of a value that was read; return any other error as it is.

    Args:
        path: The file.
        error: The error, which becomes the cause of the `StoreError`.
        opening: The file is not open yet.
    """
    if not isinstance(error, _READ_ERRORS):
        return error
    if isinstance(error, sqlite3.Error):
        # The lower byte is the primary code (https://www.sqlite.org/rescode.html); errors of the module have none.
        extended = getattr(error, "sqlite_errorcode", 0)
        code = extended & 0xFF
        table = {**_ADVICE, **_ADVICE_WHEN_OPENED} if opening else _ADVICE
        advice = table.get(extended) or table.get(code, "look at the disk and at what else uses the file")
        may_pass = code in _MAY_PASS and extended not in _STAYS
        if code == sqlite3.SQLITE_CANTOPEN and not opening:  # a temporary file
            may_pass = True
        kind = StoreUnavailable if may_pass else StoreError
        # The message of SQLite may hold text of the file: it quotes a schema that it cannot read.
        made = kind(f"{path} cannot be used: {one_line(str(error))}; {advice}")
    else:
        made = StoreError(damage_message(path, "it holds what this library does not write"))
    made.__cause__ = error
    return made


def damage_message(path: str, why: str) -> str:
    """Build the error text for a store that only a copy can repair."""
    return f"{path} is damaged: {why}; put back a copy, or move it away to begin anew"
