"""Dead letters of one consumer name in the database."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from push_to_poll_client._types import DeadLetter
from push_to_poll_client.stores._postgres.connection import Connection, Database, Statement
from push_to_poll_client.stores._postgres.errors import Damaged
from push_to_poll_client.stores._postgres.notices import digest_of
from push_to_poll_client.stores._retention import MAX_DEAD_LETTER_BYTES, MAX_DEAD_LETTERS

_COLUMNS = "key, marked, dropped, id, attempts, first_failed, last_failed, error, traceback, raw"

_ADD = f"""
    INSERT INTO {{s}}.dead_letter(consumer, digest, {_COLUMNS})
    VALUES (%(consumer)s, %(digest)s, %(key)b, %(marked)s, %(dropped)s, %(id)b, %(attempts)s,
        %(first_failed)s, %(last_failed)s, %(error)b, %(traceback)b, %(raw)b)
    ON CONFLICT (consumer, digest) DO UPDATE SET marked = excluded.marked, dropped = excluded.dropped,
        id = excluded.id, attempts = excluded.attempts,
        first_failed = excluded.first_failed, last_failed = excluded.last_failed,
        error = excluded.error, traceback = excluded.traceback, raw = excluded.raw
"""  # noqa: S608
_REMOVE = "DELETE FROM {s}.dead_letter WHERE consumer = %(consumer)s AND digest = ANY(%(digests)b)"

# The sizes are summed up first: large values are read only for the dead letters that are returned.
_SELECT_SOME = f"""
    WITH next AS (
        SELECT digest, substr(key, 1, 1000) AS prefix, key, octet_length(raw) + octet_length(traceback) AS size
        FROM {{s}}.dead_letter
        WHERE consumer = %(consumer)s {{marked}}
            AND (%(after)s::bytea IS NULL
                OR (substr(key, 1, 1000), key) > (substr(%(after)s::bytea, 1, 1000), %(after)s::bytea))
        ORDER BY prefix, key LIMIT %(most)s
    ), numbered AS (
        SELECT digest, row_number() OVER before AS place, sum(size) OVER before AS total
        FROM next WINDOW before AS (ORDER BY prefix, key)
    )
    SELECT {_COLUMNS} FROM numbered JOIN {{s}}.dead_letter USING (digest)
    WHERE consumer = %(consumer)s AND (place = 1 OR total <= %(bytes)s) ORDER BY place
"""  # noqa: S608
SELECT_SOME = _SELECT_SOME.replace("{marked}", "")
SELECT_MARKED = _SELECT_SOME.replace("{marked}", "AND marked")

_SELECT_ONE = f"SELECT {_COLUMNS} FROM {{s}}.dead_letter WHERE consumer = %(consumer)s AND digest = %(digest)s"  # noqa: S608

_DIGESTS = "SELECT digest FROM {s}.dead_letter WHERE consumer = %(consumer)s LIMIT %(most)s"
_COUNT = "SELECT count(*) FROM {s}.dead_letter WHERE consumer = %(consumer)s"

_MAX_INDEXED = 10_000
"""Most digests kept in memory. With more dead letters, each commit searches the table."""


def encode_text(text: str) -> bytes:
    """Encode any string for `bytea`, in the order of its code points."""
    return text.encode("utf-8", "surrogatepass")


def decode_text(stored: bytes) -> str:
    """Decode a stored string."""
    try:
        return bytes(stored).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise Damaged("a string") from error


class DeadLetterIndex(NamedTuple):
    """Number and digests of the dead letters, kept in memory."""

    total: int
    digests: frozenset[bytes] | None  # None if they are too many


class DeadLetters:
    """Reads the dead letters of one name, and plans their changes."""

    def __init__(self, database: Database, consumer: int) -> None:
        self._database = database
        self._consumer = consumer

    def read_index(self, connection: Connection) -> DeadLetterIndex:
        """Count the dead letters, and read their digests if they are not too many."""
        values = {"consumer": self._consumer, "most": _MAX_INDEXED + 1}
        rows = connection.execute(self._database.sql(_DIGESTS), values, binary=True).fetchall()
        if len(rows) <= _MAX_INDEXED:
            return DeadLetterIndex(len(rows), frozenset(digest for (digest,) in rows))
        (total,) = connection.execute(self._database.sql(_COUNT), values).fetchone() or (0,)
        return DeadLetterIndex(total, None)

    def plan(
        self, index: DeadLetterIndex, settled: Sequence[bytes], dead_letters: Sequence[DeadLetter]
    ) -> tuple[list[Statement], DeadLetterIndex]:
        """Plan to remove those of settled keys and to add new ones; return the index afterwards."""
        known = index.digests
        removed = [*settled] if known is None else [*known.intersection(settled)]
        statements: list[Statement] = []
        if removed:
            statements.append((_REMOVE, {"consumer": self._consumer, "digests": removed}))
        statements += [(_ADD, self._columns(letter)) for letter in dead_letters]
        if not statements or known is None:
            return statements, index
        left = known.difference(removed).union(digest_of(letter.dedupe_key) for letter in dead_letters)
        return statements, DeadLetterIndex(len(left), left if len(left) <= _MAX_INDEXED else None)

    def _columns(self, letter: DeadLetter) -> dict[str, Any]:
        return {
            "consumer": self._consumer,
            "digest": digest_of(letter.dedupe_key),
            "key": encode_text(letter.dedupe_key),
            "marked": letter.retry_requested or letter.drop_requested,
            "dropped": letter.drop_requested,
            "id": encode_text(letter.id),
            "attempts": letter.attempts,
            "first_failed": letter.first_failed,
            "last_failed": letter.last_failed,
            "error": encode_text(letter.error),
            "traceback": encode_text(letter.traceback),
            "raw": letter.raw,
        }

    def read_some(
        self, connection: Connection, after: str | None, *, retry_requested: bool
    ) -> Sequence[DeadLetter]:
        """Read dead letters with keys after `after`: at most 100 and 16 MiB, but at least one."""
        values = {
            "consumer": self._consumer,
            "after": None if after is None else encode_text(after),
            "most": MAX_DEAD_LETTERS,
            "bytes": MAX_DEAD_LETTER_BYTES,
        }
        statement = SELECT_MARKED if retry_requested else SELECT_SOME
        rows = connection.execute(self._database.sql(statement), values, binary=True).fetchall()
        return [decode_dead_letter(row) for row in rows]

    def read_one(self, connection: Connection, key: str) -> DeadLetter | None:
        """Read the dead letter of a key, or None."""
        values = {"consumer": self._consumer, "digest": digest_of(key)}
        row = connection.execute(self._database.sql(_SELECT_ONE), values, binary=True).fetchone()
        return None if row is None else decode_dead_letter(row)


def decode_dead_letter(row: Sequence[Any]) -> DeadLetter:
    """Return the dead letter of a row, in the order of the columns."""
    key, marked, dropped, id_, attempts, first_failed, last_failed, error, traceback, raw = row
    return DeadLetter(
        dedupe_key=decode_text(key),
        id=decode_text(id_),
        raw=bytes(raw),
        error=decode_text(error),
        traceback=decode_text(traceback),
        attempts=attempts,
        first_failed=first_failed,
        last_failed=last_failed,
        retry_requested=marked and not dropped,
        drop_requested=dropped,
    )
