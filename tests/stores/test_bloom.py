"""Bloom filters: no false negatives, few false positives, bounded size."""

import random

import pytest

from push_to_poll_client.stores import _bloom
from push_to_poll_client.stores._bloom import BloomFilters

DICE = random.Random(1)  # noqa: S311

SEGMENT = 8_000


def some_keys(number):
    text = DICE.randbytes(16 * number).hex()
    return [text[at : at + 32] for at in range(0, len(text), 32)]


def bytes_of(filters):
    return sum(8 * one.words for one in filters._generations)


def suspected_in(filters, keys):
    """Return, for each key, the segments that may contain it."""
    found = {key: set() for key in keys}
    for segments, suspects in filters.candidates(keys):
        for key in suspects:
            found[key].update(segments)
    return found


def test_an_empty_filter_suspects_no_key():
    filters = BloomFilters(expected=0, max_records=None)
    assert filters.candidates(["a", ""]) == []
    filters.drop(7)
    assert filters.candidates([]) == []


def test_every_added_key_is_suspected_in_its_segment():
    """Cover several generations; each begins with a segment and gets keys of the same segment repeatedly."""
    filters, added = BloomFilters(expected=0, max_records=None), {}
    for segment in range(30):
        for _ in range(4):
            for key in (keys := some_keys(SEGMENT // 4)):
                added[key] = segment
            filters.add(segment, keys)
    assert len(filters._generations) == 3
    sample = DICE.sample(sorted(added), 2000)
    found = suspected_in(filters, sample)
    assert all(added[key] in found[key] for key in sample)
    segments = [segment for one in filters._generations for segment in one.segments]
    assert segments == list(range(30))


def test_the_newest_segments_are_named_first():
    filters = BloomFilters(expected=0, max_records=None)
    for segment in range(20):
        filters.add(segment, [*some_keys(SEGMENT), "everywhere"])
    named = [segment for segments, _ in filters.candidates(["everywhere"]) for segment in segments]
    assert named == list(range(20))[::-1]


def test_few_keys_that_were_not_added_are_suspected():
    """A full generation suspects one key in two thousand. The bound leaves room for chance."""
    filters = BloomFilters(expected=0, max_records=None)
    for segment in range(9):
        filters.add(segment, some_keys(SEGMENT))
    assert len(filters._generations) == 1
    others = some_keys(50_000)
    assert len([key for key, segments in suspected_in(filters, others).items() if segments]) < len(others) / 500


def test_a_filter_takes_about_four_bytes_per_record_expected_at_construction():
    filters = BloomFilters(expected=400_000, max_records=None)
    for segment in range(50):
        filters.add(segment, some_keys(SEGMENT))
    assert bytes_of(filters) < 4 * 400_000 + 4 * SEGMENT
    assert len(filters._generations) == 2


def test_the_size_of_a_filter_follows_the_present_records_and_not_the_limit():
    filters = BloomFilters(expected=10, max_records=1_000_000_000)
    filters.add(1, some_keys(10))
    assert bytes_of(filters) == 4 * _bloom._MIN_KEYS


@pytest.mark.no_cover  # lines are counted where it is quick
def test_a_filter_stays_small_while_records_are_added_and_dropped():
    """With a limit on records. Keys of dropped records are no longer suspected."""
    most = 200_000
    filters, sizes, first = BloomFilters(expected=0, max_records=most), [], some_keys(SEGMENT)
    filters.add(0, first)
    for segment in range(1, 125):
        filters.add(segment, some_keys(SEGMENT))
        filters.drop(segment - most // SEGMENT)
        sizes.append(bytes_of(filters))
    assert max(sizes) <= 8 * most
    assert sum(sizes) / len(sizes) < 6.5 * most
    assert sum(map(len, suspected_in(filters, first).values())) < len(first) * most // SEGMENT // 100


@pytest.mark.no_cover  # lines are counted where it is quick
def test_a_filter_without_a_limit_has_few_generations_and_a_bounded_size_per_record():
    """A hundred times more records need at most seven more generations."""
    filters = BloomFilters(expected=0, max_records=None)
    for segment in range(100):
        filters.add(segment, some_keys(SEGMENT))
    assert len(filters._generations) == 5
    assert bytes_of(filters) <= 8 * 100 * SEGMENT
