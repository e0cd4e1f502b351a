"""Consumer names of a file: log a new one that comes beside others, and bind one to another feed.

The name of a consumer without `name=` is its feed's identity. When the feed's URL changes, a new name begins, and
everything is processed again. With `name=` such a change is a `StoreMismatch`, but a changed name begins anew too.
So a new name in a file that has others is logged once, and `rebind` gives it the old progress.
"""

import logging
import sqlite3
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._validation import quoted
from push_to_poll_client.stores._rebind import Rebind
from push_to_poll_client.stores._sqlite.file import OpenFile, wrap_invalid_values
from push_to_poll_client.stores._sqlite.schema import decode_text, encode_text

_logger = ConsumerLog(logging.getLogger("push_to_poll_client"))

_SELECT_OTHERS = """
    SELECT name, feed = :feed FROM push_to_poll_consumer WHERE name != :name
    ORDER BY feed != :feed, name LIMIT :limit
"""
_MAX_SHOWN = 3

_SELECT_BOUND = "SELECT id, feed FROM push_to_poll_consumer WHERE name = ?"
_REBIND = "UPDATE push_to_poll_consumer SET name = ?, feed = ?, token = token + 1 WHERE id = ?"

TABLES_OF_A_NAME = (
    "push_to_poll_segment",
    "push_to_poll_record",
    "push_to_poll_dead_letter",
    "push_to_poll_history",
    "push_to_poll_state",
)
"""Tables with rows of a consumer name, besides its own row."""


class OtherNames(NamedTuple):
    """Names that a file has beside a new one, first those of the same feed.

    Attributes:
        shown: Some of them, as they are stored.
        have_feed: Whether one is bound to the same feed.
    """

    shown: tuple[str | bytes, ...]
    have_feed: bool

    @classmethod
    def read(cls, connection: sqlite3.Connection, name: str, feed: str) -> "OtherNames":
        """Read them, one more than are shown."""
        values = {"name": encode_text(name), "feed": encode_text(feed), "limit": _MAX_SHOWN + 1}
        rows = connection.execute(_SELECT_OTHERS, values).fetchall()
        return cls(tuple(other for other, _ in rows), any(same for _, same in rows))

    def log(self, path: str, name: str, feed: str) -> None:
        """Log that the name is new, if there are others.

        A consumer that is named, and whose feed no other name has, shares the file on purpose: a change of its URL
        would have been a `StoreMismatch`. That is INFO.
        """
        if not self.shown:
            return
        _logger.log(
            logging.WARNING if name == feed or self.have_feed else logging.INFO,
            "%s: %s is a new name that begins anew; the file has %s already. If this is the same consumer, under "
            "another name or address, stop it and see push-to-poll rebind --help",
            path,
            quoted(name),
            ", ".join(map(quoted, self.shown[:_MAX_SHOWN])) + (" and others" * (len(self.shown) > _MAX_SHOWN)),
        )


def rebind(file: OpenFile, asked: Rebind, check_unowned: Callable[[str], None]) -> None:
    """See `SQLiteStore.rebind`. The caller has access to the file.

    Raises:
        ValueError: The name does not exist, or the new one does already.
        StoreError: The file cannot be written; nothing was.
    """
    execute = file.connection.execute
    with file.transaction():
        row = _find(file, asked.name)
        if row is None:
            raise asked.unknown_name(file.path)
        consumer, bound_to = row
        target = asked.target(bound_to)
        if target != asked.name:
            check_unowned(target)
            if (other := _find(file, target)) is not None:
                asked.check_free(file.path, target)
                for table in TABLES_OF_A_NAME:
                    execute(f"DELETE FROM {table} WHERE consumer = ?", (other[0],))  # noqa: S608  # a constant
                execute("DELETE FROM push_to_poll_consumer WHERE id = ?", (other[0],))
        # The token too, for a former owner whose lock file was deleted.
        feed = bound_to if asked.feed is None else asked.feed
        execute(_REBIND, (encode_text(target), encode_text(feed), consumer))


def _find(file: OpenFile, name: str) -> tuple[int, str] | None:
    """Return the number of a name and the feed that it is bound to."""
    row = file.connection.execute(_SELECT_BOUND, (encode_text(name),)).fetchone()
    if row is None:
        return None
    with wrap_invalid_values(file.path):
        return msgspec.convert(tuple(map(decode_text, row)), tuple[int, str])
