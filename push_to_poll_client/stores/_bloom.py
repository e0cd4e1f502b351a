"""A Bloom filter over dedupe keys: which of them certainly have no record.

A blocked Bloom filter (Putze, Sanders, Singler: Cache-, Hash- and Space-Efficient Bloom Filters, 2007): a key sets
some bits of one word, and a key whose bits are not all set was never added. One key in two thousand is suspected
falsely. Nothing can be taken out of it, so there is one for each generation of segments, and it goes with the last
of them.
"""

import random
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import repeat

__all__ = [
    "BloomFilters",
    "Candidates",
]


_KEYS_PER_WORD = 2
"""32 bits for a key."""

_BITS_PER_KEY = 6

_MASK_BITS = 14

_MIN_KEYS = 65_536
"""Keys of a generation at least: 256 KiB."""

_GENERATIONS = 2
"""Generations in which what may be kept has room. One more fills, and one empties: 6 to 8 bytes for a record."""


class Candidates:
    """Keys that segments of a generation may have.

    Attributes:
        segments: Their numbers, the newest first.
        keys: Those that may be in one of them.
    """

    __slots__ = ("keys", "segments")

    def __init__(self, segments: Sequence[int], keys: Sequence[str]) -> None:
        self.segments = segments
        self.keys = keys


class _Generation:
    """The keys of some segments that follow one another."""

    __slots__ = ("_words", "capacity", "segments", "size")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.segments = deque[int]()
        self._words = array("Q", bytes(8 * (capacity // _KEYS_PER_WORD)))

    def add(self, keys: Sequence[str]) -> None:
        words, masks, number = self._words, _masks(), len(self._words)
        for hashed in map(hash, keys):
            words[hashed % number] |= masks[hashed >> 40 & _LAST_MASK]
        self.size += len(keys)

    def candidates(self, keys: Sequence[str], places: Sequence[int], masks: Sequence[int]) -> list[str]:
        words = self._words
        return [key for key, place, mask in zip(keys, places, masks, strict=True) if words[place] & mask == mask]

    @property
    def words(self) -> int:
        return len(self._words)


class BloomFilters:
    """The filters of one name, all its generations.

    Args:
        there: How many records there are, which will be added.
        most: How many there may be; `None`: any number.
    """

    def __init__(self, *, there: int, most: int | None) -> None:
        self._expected = there
        self._max_records = most
        self._generations = deque[_Generation]()

    def add(self, segment: int, keys: Sequence[str]) -> None:
        """What was recorded in a segment; never in one before the last that was named."""
        if not self._generations or self._is_full(segment):
            self._generations.append(_Generation(self._capacity))
        newest = self._generations[-1]
        if not newest.segments or newest.segments[-1] != segment:
            newest.segments.append(segment)
        newest.add(keys)

    def drop(self, before: int) -> None:
        """Forget the segments before this number."""
        while self._generations:
            segments = self._generations[0].segments
            while segments and segments[0] < before:
                segments.popleft()
            if segments:
                return
            self._generations.popleft()

    def candidates(self, keys: Sequence[str]) -> list[Candidates]:
        """Where the keys may be, the newest generation first; a key that is in none has no record."""
        words = _masks()
        hashes = list(map(hash, keys))
        masks = [words[hashed >> 40 & _LAST_MASK] for hashed in hashes]
        places: dict[int, Sequence[int]] = {}  # most generations are of one size
        found = []
        for one in reversed(self._generations):
            if one.words not in places:
                places[one.words] = [hashed % one.words for hashed in hashes]
            if suspected := one.candidates(keys, places[one.words], masks):
                found.append(Candidates([*reversed(one.segments)], suspected))
        return found

    def _is_full(self, segment: int) -> bool:
        newest = self._generations[-1]
        return newest.size >= newest.capacity and newest.segments[-1] != segment

    @property
    def _capacity(self) -> int:
        """The more there are, the larger is the next, so that there are few of them however many come."""
        there = max(self._expected // _GENERATIONS, sum(one.size for one in self._generations))
        return max(
            _MIN_KEYS, there if self._max_records is None else min(there, self._max_records // _GENERATIONS)
        )


_LAST_MASK = (1 << _MASK_BITS) - 1


@cache
def _masks() -> Sequence[int]:
    """Words with some bits set, of which a key chooses one by its hash."""
    dice = random.Random(0)  # noqa: S311  # nothing secret: what an attacker does not know is the hash
    return [_word_of_bits(dice.getrandbits(6) for _ in repeat(None, _BITS_PER_KEY)) for _ in range(_LAST_MASK + 1)]


def _word_of_bits(bits: Iterable[int]) -> int:
    word = 0
    for bit in bits:
        word |= 1 << bit
    return word
