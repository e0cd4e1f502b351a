"""Hostile input costs linear work: twice the input costs at most about twice the work.

The tests count steps and bytes (`work.py`), so a busy machine changes nothing. A parser may switch its method at
some size (for example for deep JSON), which is a single jump: the tests then measure again with larger inputs.
"""

import logging
from functools import partial
from html.parser import HTMLParser

import pytest

from push_to_poll_client.feeds import _decoding
from tests.fuzz.parsers import PARSERS
from tests.fuzz.work import counting_calls, work_of
from tests.support.forms import LONG, chance, form

SIZES = form((125, 1000), (1000, 4000))
"""Numbers of repetitions: first, and again after a jump."""

TWICE = 2.2

SEEN = form(100, 250)
"""Number of repetitions that shows a slow function: fewer than `SIZES`."""


def families():
    """Return every growing hostile input in the long form, and one for each parser in the short one."""
    for parser in PARSERS.values():
        one = chance(parser.name).choice([*(parser.hostile or parser.families())])
        for name, sized in parser.families().items():
            if LONG or name == one:
                yield pytest.param(parser, sized, id=f"{parser.name}: {name}")


@pytest.fixture(scope="module", autouse=True)
def _counting():
    logging.disable()  # a line that only one of two runs logs would count as work
    with counting_calls():
        yield
    logging.disable(logging.NOTSET)


def growth(parser, sized, size):
    """Return the growth of the work for an input of double size."""
    once, twice = (work_of(partial(parser, sized(number))) for number in (size, 2 * size))
    return twice / once


@pytest.mark.parametrize(("parser", "sized"), list(families()))
def test_a_parser_does_at_most_about_twice_the_work_for_twice_the_input(parser, sized):
    found = []
    for size in SIZES:
        found.append(growth(parser, sized, size))
        if found[-1] <= TWICE:
            return
    pytest.fail(f"for twice the input {' and '.join(f'{one:.1f}' for one in found)} times the work")


# Counting


def looks_from_the_beginning(text):
    return [text.find(b"x") for _ in range(len(text))]


def takes_bytes_off_the_front(text):
    while text:
        text = text[1:]


def compares_all_with_all(text):
    return sum(one == other for one in text for other in text)


def grows_by_copies(text):
    whole = b""
    for at in range(len(text)):
        whole += text[at : at + 1]


def splits_repeatedly(text):
    whole = bytearray()
    for at in range(len(text)):
        whole += text[at : at + 1]
        whole.split(b"\n")


def parses_again_and_again(text):
    for at in range(len(text)):
        _decoding._TOKEN.search(text, at)


class LooksForEachTagFromTheBeginning(HTMLParser):
    def handle_data(self, _data):
        self.rawdata.find("x")


def reads_a_page_badly(text):
    LooksForEachTagFromTheBeginning().feed("<" * len(text))


def reads_a_page(text):
    HTMLParser().feed("<" * len(text))


def is_linear(text):
    return [one for one in text.split(b",") if one.strip()]


BAD = [
    looks_from_the_beginning,
    takes_bytes_off_the_front,
    compares_all_with_all,
    grows_by_copies,
    splits_repeatedly,
    parses_again_and_again,
    reads_a_page_badly,
]


@pytest.mark.parametrize("function", BAD, ids=lambda function: function.__name__)
def test_the_work_count_detects_a_quadratic_function(function, monkeypatch):
    monkeypatch.setitem(function.__globals__, "__name__", "push_to_poll_client.planted")
    assert growth(function, lambda n: b"0" * n, SEEN) > 2 * TWICE - 1
    assert growth(is_linear, lambda n: b"0," * n, SEEN) <= TWICE


def test_the_html_parser_of_the_standard_library_is_linear():
    """It searches the next tag only from its current position."""
    assert growth(reads_a_page, lambda n: b"0" * n, 250) <= TWICE
