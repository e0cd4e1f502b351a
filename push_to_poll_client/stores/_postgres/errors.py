"""Errors of psycopg as errors of a store: which pass by themselves, and whether a commit was answered.

A server that reports an error and keeps the connection has rolled back the transaction. Every other failure during
a commit leaves its outcome open: COMMIT may have reached the server, and its answer was lost. An error that ends
the connection is such a failure too: a server that shuts down sends it behind a successful COMMIT, and PgBouncer
sends it when it has lost the server.
"""

from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg import pq

from push_to_poll_client._exceptions import CommitInDoubt, OwnershipLost, StoreError, StoreUnavailable
from push_to_poll_client._validation import one_line

T = TypeVar("T")

_PASSING = ("08", "25006", "25P03", "25P04", "40", "53", "55", "57", "58", "XX")
"""SQLSTATEs or their classes that a retry can cure (PostgreSQL, appendix A).

08 connection, 25006 read-only, as after a fail-over, 25P03 and 25P04 a transaction that took too long, perhaps
because this process was suspended, 40 rolled back, 53 resources, 55 objects in use, 57 operator or timeout,
58 system, XX internal.
"""

_PASSES_NEVER = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "certificate verify failed",
    "does not support SSL",
    "invalid ",
    " does not exist",
    "permission denied",
    "is not permitted to log in",
    "no such database",
    "no such user",
)
"""Parts of texts about failures to connect, which have no SQLSTATE, that a person must fix; two of PgBouncer."""

FENCE = "push_to_poll: this owner has been replaced"
"""Part of the error that the server raises if the comparison of the owner fails."""

_TEXT_IS_NO_NUMBER = "22P02"

READ_ONLY = "25006"

_NOT_PERMITTED = "42501"

_NOT_UNIQUE = "23505"

_NO_PARENT = "23503"


class Damaged(psycopg.DataError, ValueError):
    """A stored value that this library does not write."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the tables contain {what} that this library does not write; restore a backup")


def read_value(what: str, value: Any, kind: type[T]) -> T:
    """Return a stored value as an instance of this type, or raise `Damaged`."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Damaged(f"a value of {what}") from error


class TimedOut(psycopg.OperationalError):
    """The server did not answer in time."""


def store_error(where: str, error: psycopg.Error) -> StoreError:
    """Return the error of the store for one of psycopg, raised before anything could have been committed."""
    text = f"{where}: {describe_error(error)}"
    if is_fence(error):
        return _replaced(where)
    if error.sqlstate == READ_ONLY:
        return StoreUnavailable(
            f"{text}; it is a read-only standby or was made read-only, and nothing was written "
            "(target_session_attrs=read-write finds the primary among several hosts)"
        )
    if error.sqlstate == _NOT_PERMITTED:
        text += (
            "; the user needs USAGE on the schema, and SELECT, INSERT, UPDATE and DELETE on its tables; "
            "a user that creates the tables needs CREATE on the database"
        )
    return StoreUnavailable(text) if _passes(error) else StoreError(text)


def _replaced(where: str) -> OwnershipLost:
    return OwnershipLost(
        f"{where}: the name has been claimed by another owner; nothing was written; claim it again"
    )


def commit_error(
    where: str, error: psycopg.Error, connection: "psycopg.BaseConnection[Any]", *, schema: str = ""
) -> StoreError:
    """Return the error of the store for a failed commit: in doubt, unless the server has answered."""
    if _is_overtaken(error, schema):
        return _replaced(where)
    if is_fence(error) or was_answered(error, connection):
        return store_error(where, error)
    return CommitInDoubt(f"{where}: the connection was lost during a commit: {describe_error(error)}")


def was_answered(error: psycopg.Error, connection: "psycopg.BaseConnection[Any]") -> bool:
    """Return True if the server reported the error and kept the connection: then it has rolled back."""
    # libpq notices the end of the connection only when it reads again, so its status alone does not tell. The
    # status of the transaction comes with the end of an answer, which an error that ends the connection lacks.
    return (
        error.sqlstate is not None
        and connection.pgconn.status == pq.ConnStatus.OK
        and connection.pgconn.transaction_status in {pq.TransactionStatus.INERROR, pq.TransactionStatus.IDLE}
    )


def is_fence(error: psycopg.Error) -> bool:
    """Return True if the comparison of the owner has failed in the server."""
    return error.sqlstate == _TEXT_IS_NO_NUMBER and FENCE in str(error)


def _is_overtaken(error: psycopg.Error, schema: str) -> bool:
    """Return True if another owner has recorded a message of this commit, or the name was deleted.

    An owner adds only records that it has not found. The comparison of the owner comes last, so the server may
    report the record first.
    """
    told = error.diag
    if error.sqlstate == _NO_PARENT:  # the name was deleted: a rebind has replaced it
        return told.schema_name == schema
    return error.sqlstate == _NOT_UNIQUE and (told.schema_name, told.table_name) == (schema, "record")


def describe_error(error: psycopg.Error) -> str:
    """Describe an error in one line, without the statement and its values."""
    # `DETAIL` and `CONTEXT` may quote stored data.
    text = error.diag.message_primary or str(error) or type(error).__name__
    code = f" ({error.sqlstate})" if error.sqlstate else ""
    return f"{one_line(' '.join(text.split()))}{code}"  # libpq writes several lines


def _passes(error: psycopg.Error) -> bool:
    if error.sqlstate is not None:
        return error.sqlstate.startswith(_PASSING)
    if isinstance(error, psycopg.OperationalError):
        return not any(text in str(error) for text in _PASSES_NEVER)
    return False
