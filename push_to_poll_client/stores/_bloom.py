"""Blocked Bloom filters over dedupe keys: a key that is not found certainly has no record.

Form: Putze, Sanders, Singler, "Cache-, Hash- and Space-Efficient Bloom Filters" (2007). A key sets some bits of
one word. One key in two thousand is a false positive. Keys cannot be removed, so each generation of segments has a
filter, which is dropped with its last segment.
"""

import random
from array import array
from collections import deque
from collections.abc import Sequence
from functools import cache

_KEYS_PER_WORD = 2
"""32 bits per key."""

_BITS_PER_KEY = 6

_MASK_BITS = 14

_MIN_KEYS = 65_536
"""Smallest capacity of a generation, in keys: 256 KiB."""

# Generations with capacity for all records. One more is filling and one is emptying: 6 to 8 bytes per record.
_GENERATIONS = 2

_LAST_MASK = (1 << _MASK_BITS) - 1


@cache
def _masks() -> Sequence[int]:
    """Words with some bits set; the hash of a key chooses one."""
    rng = random.Random(0)  # noqa: S311  # not a secret: an attacker does not know the hashes
    masks = []
    for _ in range(_LAST_MASK + 1):
        mask = 0
        for _ in range(_BITS_PER_KEY):
            mask |= 1 << rng.getrandbits(6)
        masks.append(mask)
    return masks


class _Generation:
    """The keys of some segments that follow one another."""

    __slots__ = ("_words", "capacity", "segments", "size")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.segments = deque[int]()
        self._words = array("Q", bytes(8 * (capacity // _KEYS_PER_WORD)))

    def add(self, keys: Sequence[str]) -> None:
        words, masks, word_count = self._words, _masks(), len(self._words)
        for hashed in map(hash, keys):
            words[hashed % word_count] |= masks[hashed >> 40 & _LAST_MASK]
        self.size += len(keys)

    def candidates(self, keys: Sequence[str], indexes: Sequence[int], masks: Sequence[int]) -> list[str]:
        words = self._words
        return [key for key, index, mask in zip(keys, indexes, masks, strict=True) if words[index] & mask == mask]

    @property
    def words(self) -> int:
        return len(self._words)


class BloomFilters:
    """The filters of one name, for `expected` existing records and at most `max_records`."""

    def __init__(self, *, expected: int, max_records: int | None) -> None:
        self._expected = expected
        self._max_records = max_records
        self._generations = deque[_Generation]()

    def add(self, segment: int, keys: Sequence[str]) -> None:
        """Add keys of a segment: the segment of the last call or a later one."""
        newest = self._generations[-1] if self._generations else None
        if newest is None or (newest.size >= newest.capacity and newest.segments[-1] != segment):
            newest = _Generation(self._capacity)
            self._generations.append(newest)
        if not newest.segments or newest.segments[-1] != segment:
            newest.segments.append(segment)
        newest.add(keys)

    def drop(self, before: int) -> None:
        while self._generations:
            segments = self._generations[0].segments
            while segments and segments[0] < before:
                segments.popleft()
            if segments:
                return
            self._generations.popleft()

    def candidates(self, keys: Sequence[str]) -> list[tuple[Sequence[int], Sequence[str]]]:
        """Return, per generation, its segments and the keys that may be in them, newest first."""
        all_masks = _masks()
        hashes = list(map(hash, keys))
        masks = [all_masks[hashed >> 40 & _LAST_MASK] for hashed in hashes]
        indexes: dict[int, Sequence[int]] = {}  # by the number of words: most generations have the same
        found: list[tuple[Sequence[int], Sequence[str]]] = []
        for generation in reversed(self._generations):
            words = generation.words
            if words not in indexes:
                indexes[words] = [hashed % words for hashed in hashes]
            if suspected := generation.candidates(keys, indexes[words], masks):
                found.append(([*reversed(generation.segments)], suspected))
        return found

    @property
    def _capacity(self) -> int:
        """Capacity of the next generation. It grows with the records, so that there are few generations."""
        records = max(self._expected // _GENERATIONS, sum(generation.size for generation in self._generations))
        if self._max_records is not None:
            records = min(records, self._max_records // _GENERATIONS)
        return max(_MIN_KEYS, records)
