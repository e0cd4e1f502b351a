"""Parsers of untrusted input: they raise only declared errors, and their results are valid.

For each row of the table: any bytes, its tokens in any order, and its examples, mutated.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.parsers import PARSERS
from tests.support.forms import form

EXAMPLES = form(5, 100)
"""Number of inputs of each kind, for each parser."""

MOST_MUTATIONS = 6

parsers = pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)


def fuzzed(strategy):
    """Make a test that runs every parser on inputs of this strategy."""

    def decorate(test):
        @parsers
        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
        @given(data=st.data())
        def run(parser, data):
            test(parser, data.draw(strategy(parser)))

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


@st.composite
def mutated(draw, parser):
    """Mutate an example: cut, copy, insert parts of other examples or tokens, and flip bits."""
    text = draw(st.sampled_from((*parser.examples, *parser.found)))
    for _ in range(draw(st.integers(1, MOST_MUTATIONS))):
        text = draw(st.sampled_from(MUTATIONS))(draw, text, parser)
    return text


def cut(draw, text, _parser):
    start, stop = piece(draw, text)
    return text[:start] + text[stop:]


def duplicated(draw, text, _parser):
    start, stop = piece(draw, text)
    return text[:stop] + text[start:stop] * draw(st.integers(1, 9)) + text[stop:]


def spliced(draw, text, parser):
    other = draw(st.sampled_from(parser.examples))
    start, stop = piece(draw, other)
    at, _ = piece(draw, text)
    return text[:at] + other[start:stop] + text[at:]


def with_a_word(draw, text, parser):
    start, stop = piece(draw, text)
    return text[:start] + draw(st.sampled_from(parser.tokens)) + text[draw(st.sampled_from((start, stop))) :]


def flipped(draw, text, _parser):
    if not text:
        return b"\xff"
    at = draw(st.integers(0, len(text) - 1))
    return text[:at] + bytes([text[at] ^ 1 << draw(st.integers(0, 7))]) + text[at + 1 :]


def piece(draw, text):
    start, stop = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
    return start, stop


MUTATIONS = (cut, duplicated, spliced, with_a_word, flipped)


@parsers
def test_a_parser_reads_or_refuses_its_examples_and_earlier_findings(parser):
    for text in (*parser.examples, *parser.found):
        parser(text)


@fuzzed(lambda _: st.binary(max_size=200))
def test_a_parser_reads_or_refuses_any_bytes(parser, text):
    parser(text)


@fuzzed(lambda parser: st.lists(st.sampled_from(parser.tokens), max_size=30).map(b"".join))
def test_a_parser_reads_or_refuses_its_tokens_in_any_order(parser, text):
    before, behind = parser.frame
    parser(text)
    parser(before + text + behind)


@fuzzed(mutated)
def test_a_parser_reads_or_refuses_mutations_of_its_examples(parser, text):
    parser(text)
