"""Hostile input costs no more than its length: twice the input, at most about twice the work.

Work is counted in steps and bytes (`work.py`), so a machine that is busy changes nothing. A parser may change its
way at some size (deep JSON is split by other means), which is a step and no slope: it is looked at again beyond.
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
"""Repetitions of what is repeated, at first and where a step was seen."""

TWICE = 2.2

SEEN = form(100, 250)
"""Repetitions on which a slow function is seen: fewer than `SIZES`."""


def families():
    """Return every hostile input that grows in the long form, and one for each parser in the short one."""
    for parser in PARSERS.values():
        one = chance(parser.name).choice([*(parser.hostile or parser.families())])
        for name, sized in parser.families().items():
            if LONG or name == one:
                yield pytest.param(parser, sized, id=f"{parser.name}: {name}")


@pytest.fixture(scope="module", autouse=True)
def _counting():
    logging.disable()  # what is logged by one run and not by the next is no work of a parser
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


# The count itself


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


def splits_what_it_has_again(text):
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
    splits_what_it_has_again,
    parses_again_and_again,
    reads_a_page_badly,
]


@pytest.mark.parametrize("function", BAD, ids=lambda function: function.__name__)
def test_the_work_count_detects_a_quadratic_function(function, monkeypatch):
    monkeypatch.setitem(function.__globals__, "__name__", "push_to_poll_client.planted")
    assert growth(function, lambda n: b"0" * n, SEEN) > 2 * TWICE - 1
    assert growth(is_linear, lambda n: b"0," * n, SEEN) <= TWICE


def test_the_html_parser_of_the_standard_library_is_linear():
    """The parser of the standard library looks for the next tag from where it stands."""
    assert growth(reads_a_page, lambda n: b"0" * n, 250) <= TWICE
