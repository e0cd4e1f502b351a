"""URLs as they may be shown, and pauses that a server asks for."""

import ssl
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers

from push_to_poll_client._http.headers import requested_delay
from push_to_poll_client._http.origins import identity, without_secrets
from push_to_poll_client._http.transport import shared_tls_context
from push_to_poll_client._types import MAX_NOT_BEFORE
from push_to_poll_client._validation import quoted
from tests.support.identities import cheap_identities

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT
SECRETS = st.text("0123456789abcdef", min_size=12, max_size=12)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://shop.example/orders", "https://shop.example/orders"),
        ("HTTPS://Shop.Example:8443/Orders", "https://shop.example:8443/Orders"),
        ("https://user:pass@shop.example/@me", "https://shop.example/@me"),
        ("https://a@b:c@shop.example/", "https://shop.example/"),
        ("https://h/?page=2&key=secret&flag#frag", "https://h/?page=…&key=…&…"),
        ("https://h/?a=1;b=2", "https://h/?a=…&b=…"),
        ("wss://[::1]:8080/push?", "wss://[::1]:8080/push"),
        ("https://h/a\nb\x1b[31m\x00", "https://h/a\\nb\\x1b[31m\\x00"),
        ("https://h/\u202egpj\ud800", "https://h/\\u202egpj\\ud800"),  # shown backwards, and cannot be encoded
        (
            "https://user:pa/ss@host/feed",
            "(not a URL)",
        ),  # "user:pa" is not a valid host and port, so the password may follow
        ("user:pass@host/feed", "(not a URL)"),
        ("//user:pass@host/feed", "(not a URL)"),
        ("https://ho st/", "(not a URL)"),
        ("", "(not a URL)"),
    ],
)
def test_a_url_is_shown_without_credentials_query_values_and_fragment(url, shown):
    assert without_secrets(url) == shown


@given(SECRETS, SECRETS, SECRETS)
def test_no_secret_of_a_url_is_shown(password, value, fragment):
    url = f"https://me:{password}@h.example/feed?key={value}&{value}#{fragment}"
    with cheap_identities():
        named = identity(url)
    for shown in (without_secrets(url), named.partition("#")[0]):
        assert not any(secret in shown for secret in (password, value, fragment))


@given(st.text())
def test_any_text_given_as_a_url_is_made_safe_to_log(url):
    for shown in (without_secrets(url), without_secrets(f"https://h/{url}"), without_secrets(f"https://{url}")):
        assert shown.isprintable()
        assert len(shown) <= 300
    with cheap_identities():
        assert identity(url).isprintable()


def test_a_url_object_is_shown_like_a_url_string():
    assert without_secrets(httpx.URL("https://me:secret@h/?a=b")) == "https://h/?a=…"


def test_a_long_url_is_cut():
    shown = without_secrets("https://h/" + "a" * 1000)
    assert len(shown) == 300
    assert shown.endswith("…")


def test_feeds_that_differ_in_their_query_alone_have_different_identities():
    assert identity("https://h/feed?tenant=a") != identity("https://h/feed?tenant=b")
    assert identity("https://h/feed?tenant=a").startswith("https://h/feed?tenant=…#")


def test_an_identity_is_the_same_in_every_process():
    # A store keeps the text for years.
    assert identity("https://u:p@h/feed?a=b#frag") == "https://h/feed?a=…#ae2ab6"
    assert identity("https://h/feed") == "https://h/feed"


def test_two_invalid_urls_have_different_identities():
    assert identity("garbage") != identity("rubbish")


def test_quoted_server_text_is_short_and_on_one_line():
    assert quoted("a\nb\x1b") == r"'a\nb\x1b'"
    assert quoted("x" * 1000) == repr("x" * 100 + "...")
    assert quoted("…", limit=1) == r"'\u2026'"


def test_the_tls_context_is_shared_and_requires_certificates():
    assert shared_tls_context() is shared_tls_context()
    assert shared_tls_context().verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "120"}, 120),
        ({"retry-after": " 0 "}, 0),
        ({"retry-after": "1.5"}, 1.5),
        # The three forms of RFC 9110 §5.6.7, a minute from now; the last has no zone and means UTC.
        ({"retry-after": "Tue, 14 Nov 2023 22:14:20 GMT"}, 60),
        ({"retry-after": "Tuesday, 14-Nov-23 22:14:20 GMT"}, 60),
        ({"retry-after": "Tue Nov 14 22:14:20 2023"}, 60),
        ({"retry-after": "Tue, 14 Nov 2023 22:00:00 GMT"}, 0),
        # A server whose clock is an hour behind uses its own clock for the time.
        ({"retry-after": "Tue, 14 Nov 2023 21:14:20 GMT", "date": "Tue, 14 Nov 2023 21:13:20 GMT"}, 60),
        ({"retry-after": "Tue, 14 Nov 2023 22:14:20 GMT", "date": "yesterday"}, 60),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, MAX_NOT_BEFORE),
        ({"retry-after": "9" * 5000}, MAX_NOT_BEFORE),
        ({"retry-after": "1m30s"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "1e3"}, None),
        ({"retry-after": "١٢٠"}, None),  # digits, but not ASCII ones
        ({"retry-after": ""}, None),
        ({"retry-after": "Tue, 99 Nov 2023 22:14:20 GMT"}, None),
        ({"backoff": "30"}, 30),
        ({"backoff": "soon"}, None),
        ({"x-poll-interval": "60"}, 60),
        ({"x-poll-interval": "60", "retry-after": "5", "backoff": "30"}, 60),
    ],
)
def test_response_headers_give_the_seconds_to_wait(headers, seconds):
    assert requested_delay(503, headers, NOW) == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-poll-interval": "60"}, None),
        ({"x-poll-interval": "60", "retry-after": "5", "backoff": "30"}, 30),
        ({"x-poll-interval": "60", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "7"}, 7),
    ],
)
def test_x_poll_interval_is_ignored_within_a_poll(headers, seconds):
    assert requested_delay(200, headers, NOW, within_poll=True) == seconds


def test_a_date_without_a_zone_is_in_utc_wherever_the_machine_is(monkeypatch):
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # 14 hours ahead
    time.tzset()
    try:
        assert requested_delay(503, {"retry-after": "Tue Nov 14 22:14:20 2023"}, NOW) == 60
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"ratelimit": '"default";r=50;t=30'}, None),
        ({"ratelimit": '"default";r=0;t=30'}, 30),
        ({"ratelimit": '"burst";r=0;t=5, "daily";r=0;t=3600 ,"hourly";r=9;t=7200'}, 3600),
        ({"ratelimit": "default; r=0; t=7; pk=:cHsdsRa894==:"}, 7),
        ({"ratelimit": '"a\\"b, c;r=0";pk=";r=0;t=99";r=0;t=8'}, 8),
        ({"ratelimit": '"default";r=0'}, None),
        ({"ratelimit": '"default";t=30'}, None),
        ({"ratelimit": '"default";r=0;t=soon'}, None),
        ({"ratelimit": '"default";r=0;t=30, {'}, None),  # malformed in one place, ignored as a whole
        ({"ratelimit": "limit=100, remaining=0, reset=30"}, 30),  # an old draft
        ({"ratelimit": "limit=100,remaining=00 , reset=30;w=60"}, 30),
        ({"ratelimit": "limit=100, remaining=9, reset=30"}, None),
        ({"ratelimit": "remaining=0"}, None),
        ({"ratelimit": "reset=30"}, None),
        ({"ratelimit": "remaining=0, reset=soon"}, None),
        ({"ratelimit-policy": '"burst";q=100;w=60,"daily";q=1000;w=86400'}, None),  # a limit without a time
        ({"ratelimit-policy": '"burst";q=100;w=60', "ratelimit": '"burst";r=0;t=5'}, 5),
        ({"ratelimit": '"default";r=0;t=30', "retry-after": "5"}, 5),
        ({"ratelimit": '"default";r=0;t=30', "retry-after": "garbage"}, 30),
        ({"ratelimit": '"default";r=0;t=30', "age": "7"}, None),  # a cached copy of another client's quota
        ({"ratelimit": '"default";r=0;t=99999999'}, MAX_NOT_BEFORE),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000060"}, 60),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000060000"}, 60),  # milliseconds
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1600000000"}, 0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "17"}, 17),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "17"}, 17),
        ({"x-rate-limit-remaining": "0", "x-rate-limit-reset": "1700000060"}, 60),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000060.5"}, 60.5),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "-17"}, None),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000060", "retry-after": "5"}, 5),
        ({"x-ratelimit-remaining": "1", "x-ratelimit-reset": "17"}, None),
        ({"x-ratelimit-remaining": "none", "x-ratelimit-reset": "17"}, None),
        ({"x-ratelimit-remaining": "0"}, None),
    ],
)
def test_rate_limit_headers_give_the_wait_when_the_quota_is_used_up(headers, seconds):
    assert requested_delay(200, headers, NOW) == seconds


def test_a_rate_limit_reset_without_a_remaining_count_is_used_only_with_429():
    assert requested_delay(429, {"x-ratelimit-reset": "17"}, NOW) == 17
    assert requested_delay(200, {"x-ratelimit-reset": "17"}, NOW) is None


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        # The primary limit, by either status.
        (403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000090"}, 90),
        (429, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000090"}, 90),
        # The secondary limit, which the quota does not show.
        (403, {"x-ratelimit-remaining": "4999", "x-ratelimit-reset": "1700000090", "retry-after": "30"}, 30),
        (429, {"x-ratelimit-remaining": "4999", "x-ratelimit-reset": "1700000090", "retry-after": "30"}, 30),
        (429, {"x-ratelimit-remaining": "4999", "x-ratelimit-reset": "1700000090"}, 60),
        # A denied request looks the same; the pause is longer than a minute.
        (403, {"x-ratelimit-remaining": "4999", "x-ratelimit-reset": "1700000090"}, None),
        (429, {}, None),
    ],
)
def test_both_rate_limits_of_github_give_the_seconds_to_wait(status, headers, seconds):
    assert requested_delay(status, headers, NOW) == seconds


@pytest.mark.parametrize(
    ("stated", "seconds"),
    [
        ("Tue, 14 Nov 2023 22:14:20 -0000", 60),
        ("Tue, 14 Nov 2023 23:14:20 +0100", 60),
        ("Tue, 14 Nov 0001 22:14:20 GMT", 0),
        ("Wed, 31 Dec 1969 23:59:59 GMT", 0),
        ("Tue Nov  7 22:14:20 2023", 0),  # asctime pads with a space
        ("14 Nov 2023 22:14:20 GMT", None),
        ("2023-11-14T22:14:20Z", None),
        ("1m30s", None),
        ("90 seconds", None),
        ("-90", None),
        ("+90", None),
        ("0.5", 0.5),
        ("5, 5", None),
        ("infinity", None),
        ("nan", None),
    ],
)
def test_retry_after_is_read_as_a_number_or_a_date_and_is_otherwise_ignored(stated, seconds):
    assert requested_delay(503, {"retry-after": stated}, NOW) == seconds


def test_a_rate_limit_reset_is_measured_against_the_date_header():
    headers = {
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": "1700000060",
        "date": "Tue, 14 Nov 2023 22:14:10 GMT",
    }
    assert requested_delay(429, headers, 0.0) == 10


def test_headers_of_httpx_and_of_websockets_are_understood():
    assert requested_delay(503, httpx.Headers({"Retry-After": "7"}), NOW) == 7
    assert requested_delay(503, Headers({"Retry-After": "7"}), NOW) == 7


def test_a_repeated_header_is_ignored():
    headers = Headers([("Retry-After", "7"), ("Retry-After", "8"), ("Backoff", "3")])
    assert requested_delay(503, headers, NOW) == 3
    assert requested_delay(503, httpx.Headers([("Retry-After", "7"), ("Retry-After", "8")]), NOW) is None


NAMES = [
    *("retry-after", "backoff", "x-poll-interval", "date", "age", "ratelimit"),
    *("x-ratelimit-remaining", "x-ratelimit-reset", "ratelimit-remaining", "ratelimit-reset"),
    *("x-rate-limit-remaining", "x-rate-limit-reset", "ratelimit-policy"),
]
VALUES = (
    st.text()
    | st.text(' ";=,rt0123456789-:', max_size=60)
    | st.sampled_from(["0", "Tue, 14 Nov 2023 22:14:20 GMT", "Tue Nov 14 22:14:20 2023"])
)


@given(st.integers(100, 599), st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_the_seconds_to_wait_are_none_or_bounded_for_any_headers(status, headers):
    wait = requested_delay(status, headers, NOW)
    assert wait is None or 0 <= wait <= MAX_NOT_BEFORE


@given(st.text("Tueadyov, -0123456789:GMT+", min_size=1, max_size=40))
def test_the_date_parser_does_not_raise_for_any_text(date):
    requested_delay(503, {"retry-after": f"Tue, {date}", "date": f"Tue {date}"}, NOW)
