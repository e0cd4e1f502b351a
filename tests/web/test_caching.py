"""Validators and freshness of a response: ETag, Last-Modified, Cache-Control, Age."""

import time

import anyio
import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from push_to_poll_client._http import caching
from push_to_poll_client._http.caching import (
    MAX_FRESH,
    MAX_VALIDATOR,
    Validators,
    conditional_headers,
    directives,
    fresh_for,
    validators_of,
)
from push_to_poll_client._http.response import Response
from push_to_poll_client.feeds._base import MAX_ENDS, EndOfFeed

URL = "https://shop.example/orders"
MODIFIED = "Tue, 14 Nov 2023 22:13:20 GMT"
LATER = "Tue, 14 Nov 2023 22:13:21 GMT"


def answer(status=200, known=None, *, redirected=False, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, httpx.Headers(named), b"", None, URL, known, redirected)


class TestValidators:
    @pytest.mark.parametrize(
        ("etag", "kept"),
        [
            ('"abc"', '"abc"'),
            ('W/"abc"', 'W/"abc"'),
            ('""', '""'),
            ('"a,b\\"', '"a,b\\"'),
            (' "abc" ', '"abc"'),
            ("abc-0", "abc-0"),  # not an ETag, but some servers send and accept it
            ("*", None),  # would match any version: 304 for ever
            ('"a", "b"', None),  # two ETags
            ('"a b"', None),
            ('w/"a"', None),
            ('"é"', None),
            ("", None),
            (f'"{"a" * (MAX_VALIDATOR - 2)}"', f'"{"a" * (MAX_VALIDATOR - 2)}"'),
            (f'"{"a" * (MAX_VALIDATOR - 1)}"', None),
        ],
    )
    def test_a_usable_etag_is_kept_and_any_other_is_dropped(self, etag, kept):
        known = validators_of({"etag": etag})
        assert (known and known.etag) == kept

    @pytest.mark.parametrize(
        ("headers", "kept"),
        [
            ({"last-modified": MODIFIED, "date": LATER}, MODIFIED),
            ({"last-modified": f" {MODIFIED}", "date": LATER}, MODIFIED),
            ({"last-modified": "Tue Nov 14 22:13:20 2023", "date": LATER}, "Tue Nov 14 22:13:20 2023"),
            ({"last-modified": MODIFIED, "date": MODIFIED}, None),  # may have changed again in that second
            ({"last-modified": LATER, "date": MODIFIED}, None),
            ({"last-modified": MODIFIED}, MODIFIED),  # long ago, even if one of the clocks is wrong
            ({"last-modified": "yesterday", "date": LATER}, None),
            ({"last-modified": "0", "date": LATER}, None),
            ({"date": LATER}, None),
        ],
    )
    def test_last_modified_is_kept_only_if_it_is_older_than_the_response(self, headers, kept):
        known = validators_of(headers)
        assert (known and known.last_modified) == kept

    @pytest.mark.parametrize(("ago", "is_kept"), [(59, False), (61, True)])
    def test_last_modified_without_a_date_header_is_kept_only_if_it_is_a_minute_old(
        self, monkeypatch, ago, is_kept
    ):
        monkeypatch.setattr(caching.time, "time", lambda: 1_700_000_000 + ago)
        assert (validators_of({"last-modified": MODIFIED}) is not None) == is_kept

    def test_no_store_drops_the_validators_and_no_cache_keeps_them(self):
        assert validators_of({"etag": '"a"', "cache-control": "private, No-Store"}) is None
        assert validators_of({"etag": '"a"', "cache-control": "no-cache"}) == Validators('"a"')

    def test_validators_of_two_texts_drop_a_text_that_a_header_cannot_carry(self):
        assert Validators.of('"a"', MODIFIED) == ('"a"', MODIFIED)
        assert Validators.of("a\nb", MODIFIED) == (None, MODIFIED)
        assert Validators.of('"a"', "é") == ('"a"', None)
        assert Validators.of(None, None) is None
        assert Validators.of("*", "a" * 5000) is None

    def test_validators_are_unchanged_after_json_encoding_and_decoding(self):
        known = Validators('W/"a"', MODIFIED)
        assert Validators(*msgspec.json.decode(msgspec.json.encode(known))) == known


class TestConditions:
    def test_the_etag_is_sent_rather_than_the_last_modified_date(self):
        assert conditional_headers(Validators('"a"', MODIFIED)) == {"if-none-match": '"a"'}
        assert conditional_headers(Validators(last_modified=MODIFIED)) == {"if-modified-since": MODIFIED}

    @pytest.mark.parametrize(
        "known",
        [
            None,
            Validators(),
            Validators("*"),
            Validators("a\r\nx: y"),
            Validators("é"),
            Validators('"' + "a" * 5000 + '"'),
            Validators(last_modified="a\nb"),
            Validators(last_modified="a" * 5000),
        ],
    )
    def test_a_validator_that_a_header_cannot_carry_is_not_sent(self, known):
        """The saved cursor may have been edited."""
        assert conditional_headers(known) == {}

    def test_the_last_modified_date_is_sent_if_the_etag_cannot_be_sent(self):
        assert conditional_headers(Validators("é", MODIFIED)) == {"if-modified-since": MODIFIED}


class TestOfAnAnswer:
    def test_304_keeps_the_old_validators_and_replaces_those_that_it_sends(self):
        known = Validators('"a"', MODIFIED)
        assert answer(304, known).validators == known
        assert answer(304, known, etag='"b"').validators == Validators('"b"', MODIFIED)
        assert answer(304, known, last_modified=LATER).validators == Validators('"a"', LATER)
        assert answer(304, known, cache_control="no-store").validators is None

    def test_a_200_answer_has_only_its_own_validators(self):
        known = Validators('"a"', MODIFIED)
        assert answer(200, known).validators is None
        assert answer(200, known, etag='"b"').validators == Validators('"b"')

    def test_a_redirected_answer_has_no_validators(self):
        """They belong to another URL."""
        assert answer(redirected=True, etag='"a"').validators is None


class TestCacheControl:
    @pytest.mark.parametrize(
        ("field", "given"),
        [
            ("", {}),
            ("no-cache", {"no-cache": ""}),
            ("Max-Age=60, PRIVATE", {"max-age": "60", "private": ""}),
            ('max-age="60" , private="a, b",x', {"max-age": "60", "private": "a, b", "x": ""}),
            ("max-age = 60", {"max-age": "60"}),
            ("max-age=60, max-age=60", {"max-age": "60"}),
            ("max-age=60, max-age=30, max-age=60", {"max-age": ""}),
            ("max-age=60, max-age=30", {"max-age": ""}),
            (",, ;x, a b, no-store", {"no-store": ""}),
            ('x="no-store, y', {}),
            ("max-age=", {}),
        ],
    )
    def test_cache_control_directives_are_parsed(self, field, given):
        assert directives({"cache-control": field}) == given

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({}, 0),
            ({"cache-control": "max-age=60"}, 60),
            ({"cache-control": "private, max-age=60, must-revalidate"}, 60),
            ({"cache-control": 'max-age="60"'}, 60),
            ({"cache-control": "max-age=60", "age": "50"}, 10),
            ({"cache-control": "max-age=60", "age": "70"}, 0),
            ({"cache-control": "max-age=60", "age": "soon"}, 0),
            ({"cache-control": "max-age=60", "age": "5, 7"}, 0),
            ({"cache-control": "max-age=31536000"}, MAX_FRESH),
            ({"cache-control": "max-age=" + "9" * 5000}, MAX_FRESH),
            ({"cache-control": "max-age=0, must-revalidate"}, 0),
            ({"cache-control": "max-age=60, no-cache"}, 0),
            ({"cache-control": 'max-age=60, no-cache="set-cookie"'}, 0),
            ({"cache-control": "max-age=60, no-store"}, 0),
            ({"cache-control": "max-age=60, max-age=90"}, 0),
            ({"cache-control": "max-age=-60"}, 0),
            ({"cache-control": "max-age=1.5"}, 0),
            ({"cache-control": "s-maxage=60"}, 0),  # only for shared caches
            ({"cache-control": "max-age=60", "age": "9" * 5000}, 0),
            ({"expires": "Fri, 31 Dec 2100 23:59:59 GMT"}, 0),
        ],
    )
    def test_an_answer_is_fresh_for_its_max_age_minus_its_age(self, headers, seconds):
        assert fresh_for(headers) == seconds

    @given(st.text() | st.text('max-age=0123 ,"\\', max_size=60), st.text(max_size=5))
    def test_the_freshness_is_bounded_for_any_header_text(self, field, age):
        assert 0 <= fresh_for({"cache-control": field, "age": age}) <= MAX_FRESH
        assert 0 <= fresh_for({"cache-control": f"max-age=5,{field}"}) <= MAX_FRESH


class TestTail:
    pytestmark = pytest.mark.anyio

    async def test_the_validators_and_freshness_of_an_empty_answer_are_remembered(self):
        tail = EndOfFeed()
        assert tail.validators_for(URL) is None
        assert not tail.is_fresh(URL)
        tail.note(URL, answer(etag='"a"', cache_control="max-age=60"), empty=True)
        assert tail.validators_for(URL) == Validators('"a"')
        assert tail.is_fresh(URL)
        assert tail.validators_for(f"{URL}?page=2") is None
        await anyio.sleep(61)
        assert not tail.is_fresh(URL)
        assert tail.validators_for(URL) == Validators('"a"')

    async def test_an_answer_with_messages_clears_the_validators_and_freshness_of_its_url(self):
        tail = EndOfFeed()
        tail.note(URL, answer(etag='"a"', cache_control="max-age=60"), empty=True)
        tail.note(URL, answer(etag='"b"', cache_control="max-age=60"), empty=False)
        assert tail.validators_for(URL) is None
        assert not tail.is_fresh(URL)

    async def test_304_with_no_store_clears_the_remembered_validators(self):
        tail = EndOfFeed()
        tail.note(URL, answer(etag='"a"'), empty=True)
        tail.note(URL, answer(304, tail.validators_for(URL), cache_control="no-store"), empty=True)
        assert tail.validators_for(URL) is None

    async def test_the_remembered_urls_are_bounded_and_the_latest_are_kept(self):
        tail = EndOfFeed()
        for number in range(MAX_ENDS + 1):
            tail.note(URL, answer(etag='"a"'), empty=True)
            tail.note(f"{URL}?{number}", answer(etag='"a"'), empty=True)
        assert tail.validators_for(URL) is not None
        assert tail.validators_for(f"{URL}?1") is None
        assert tail.validators_for(f"{URL}?2") is not None

    async def test_an_answer_without_validators_and_max_age_is_not_remembered(self):
        tail = EndOfFeed()
        tail.note(URL, answer(), empty=True)
        assert not tail._ends

    async def test_an_answer_is_not_fresh_in_an_event_loop_with_an_earlier_clock(self, monkeypatch):
        """Trio starts each event loop's clock at another time."""
        tail = EndOfFeed()
        tail.note(URL, answer(cache_control="max-age=60"), empty=True)
        earlier = anyio.current_time() - 1000
        monkeypatch.setattr(anyio, "current_time", lambda: earlier)
        assert not tail.is_fresh(URL)

    async def test_forget_clears_the_remembered_validators(self):
        tail = EndOfFeed()
        tail.note(URL, answer(etag='"a"'), empty=True)
        tail.forget()
        assert tail.validators_for(URL) is None


def test_max_fresh_is_one_hour_and_an_http_date_is_parsed():
    assert caching.MAX_FRESH == 3600
    assert time.gmtime(caching.http_date({"date": MODIFIED}, "date")).tm_min == 13
