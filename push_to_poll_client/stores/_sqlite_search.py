"""Which keys of one consumer name have a record in the file?

Asked are the few segments whose keys lie around the page's: of ids that are counted up, or begin with a time,
these are one or two. Only when there are many, for the ids are random, a filter says which keys are looked for. It
is built when it is needed first, by reading all keys once.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any, TypeAlias

from anyio.from_thread import check_cancelled

from push_to_poll_client.stores._filter import Filters
from push_to_poll_client.stores._retention import Retention
from push_to_poll_client.stores._segments import Segments
from push_to_poll_client.stores._sqlite_text import as_json

__all__ = ["Search"]

# One statement for all keys, given as one JSON array: while it runs, other threads run too. Statement by statement
# the thread would wait for them a thousand times. Segment after segment, since what lies together is found
# quickly.
_FIND = """
    SELECT {} FROM json_each(:segments) AS asked
    CROSS JOIN json_each(:keys) AS given
    CROSS JOIN push_to_poll_record AS record
    ON consumer = :consumer AND segment = asked.value AND record.key = given.value
"""
_KEY = _FIND.format("record.key")
_ALL = _FIND.format("record.key, segment, fingerprint")

_FEW = 3
"""Segments that are asked without a filter: more, and the filter is quicker."""

_TRIES = 8
"""Times that a place is looked for where many keys lie together, before each is looked for everywhere."""

_Found: TypeAlias = dict[str, tuple[int, int | None]]
"""For each key the segment of a record, and its fingerprint."""

_first_of = itemgetter(0)


class Search:
    """Finds the records of one name, in a worker thread.

    Args:
        connection: To the file.
        consumer: Its number in the file.
        segments: In which they are.
        retention: How many there may be.
    """

    def __init__(
        self, connection: sqlite3.Connection, consumer: int, segments: Segments, retention: Retention
    ) -> None:
        self._connection = connection
        self._consumer = consumer
        self._segments = segments
        self._retention = retention
        self._filters: Filters | None = None
        self._last_found = 0

    def find(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys, as they stand in the file, that have a record."""
        near = self._near(keys)
        if near is not None:
            return set(map(_first_of, self._ask(_KEY, near, keys)))
        found = set[str]()
        for suspects in self._filled().suspects(keys):
            found.update(self._search(suspects.segments, [key for key in suspects.keys if key not in found]))
        return found

    def fingerprints(self, keys: Sequence[str]) -> Mapping[str, int]:
        """The fingerprint of each key's newest record, if it has one."""
        near = self._near(keys)
        if near is not None:
            found = self._find_in(near, keys)
        else:
            found = {}
            for suspects in reversed(self._filled().suspects(keys)):
                found.update(self._find_in(suspects.segments, suspects.keys))
        return {key: fingerprint for key, (_, fingerprint) in found.items() if fingerprint is not None}

    def update(self, keys: Sequence[tuple[int, Sequence[str]]], *, dropped: Sequence[int]) -> None:
        """Know that these segments got these keys, and that others are gone."""
        if self._filters is None:
            return
        for number, some in keys:
            self._filters.add(number, some)
        if dropped:
            self._filters.drop(dropped[-1] + 1)

    def forget(self) -> None:
        """Know that there are none any more."""
        self._filters = None

    def _near(self, keys: Sequence[str]) -> list[int] | None:
        """The segments that may have one of the keys; `None`: many."""
        if not keys:
            return []
        near = list(islice(self._segments.meeting(min(keys), max(keys)), _FEW + 1))
        return near if len(near) <= _FEW else None

    def _search(self, segments: Sequence[int], keys: Sequence[str]) -> Iterator[str]:
        """Those of the keys that have a record in one of many segments.

        What is processed again comes in the order in which it came, so most lie where the last one was found.
        """
        for _ in range(_TRIES):
            if not keys:
                return
            found = self._find_in([number for number in segments if 0 <= number - self._last_found <= 1], keys)
            yield from found
            keys = [key for key in keys if key not in found]
            found = self._find_in(segments, keys[:1])
            yield from found
            keys = keys[1:]
        yield from self._find_in(segments, keys)

    def _find_in(self, segments: Sequence[int], keys: Sequence[str]) -> _Found:
        """Those of the keys that have a record there, with the newest one. The segments are named newest first."""
        rows = self._ask(_ALL, segments, keys)
        if rows:
            self._last_found = rows[-1][1]
        return {key: (segment, fingerprint) for key, segment, fingerprint in rows}

    def _ask(self, query: str, segments: Sequence[int], keys: Sequence[str]) -> list[Any]:
        if not segments or not keys:
            return []
        asked = {"consumer": self._consumer, "segments": as_json(segments[::-1]), "keys": as_json(keys)}
        return self._connection.execute(query, asked).fetchall()

    def _filled(self) -> Filters:
        if self._filters is None:
            self._filters = self._fill()
        return self._filters

    def _fill(self) -> Filters:
        filters = Filters(there=self._segments.size, most=self._retention.count)
        query = "SELECT key FROM push_to_poll_record WHERE consumer = ? AND segment = ?"
        for segment in self._segments.live:
            check_cancelled()  # ten million take some seconds
            rows = self._connection.execute(query, (self._consumer, segment.number))
            filters.add(segment.number, list(map(_first_of, rows)))
        return filters
