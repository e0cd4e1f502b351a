"""The secrets of a client are recognised, and masked in foreign text."""

import contextvars
import html
import json
import logging
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from push_to_poll_client._exceptions import FeedError
from push_to_poll_client._log import ConsumerLog, log_as
from push_to_poll_client._secrets import (
    MAX_MASKED,
    MAX_RECENT,
    MIN_SECRET,
    Secrets,
    error_chain,
    hidden,
    hide_in,
    known_secrets,
    mask,
    shows_a_secret,
)
from push_to_poll_client._validation import describe, one_line, quoted

WRITTEN = (
    str,
    lambda secret: quote(secret, safe="", errors="surrogatepass"),
    lambda secret: quote_plus(secret, errors="surrogatepass").lower(),
    json.dumps,
    lambda secret: json.dumps(secret, ensure_ascii=False).replace("/", "\\/"),
    lambda secret: html.escape(secret, quote=True),
    ascii,
)


def knowing(*values):
    secrets = Secrets()
    secrets.add(*values)
    return secrets


@given(st.text(min_size=MIN_SECRET, max_size=150), st.sampled_from(WRITTEN))
@example("0" * 120 + '/+ ü\U0001f600"', json.dumps)
def test_a_secret_is_masked_in_every_encoding(secret, write):
    text = write(secret)
    inner = text[1:-1] if write in {json.dumps, ascii, WRITTEN[4]} else text
    # Python escapes some characters in fewer characters than JSON; the text next to the secret is kept.
    assert knowing(secret).mask(f"<{inner}>") == "<***>" or any(char in secret for char in "\n\t\r\b\f")


@pytest.mark.parametrize("write", WRITTEN)
def test_a_secret_with_backslashes_is_masked_in_every_encoding(write):
    secret = '\\\\host\\"a"\\/\\'
    assert knowing(secret).mask(f"<{write(secret).strip(chr(34) + chr(39))}>") in {"<***>", "<***"}


def test_no_text_makes_a_secret_pattern_backtrack_exponentially():
    """If each backslash could be doubled or not, this would take 2**64 steps."""
    text = "\\" * 128
    assert knowing("\\" * 64 + "x").mask(text) == text


def test_short_values_are_not_masked_since_they_are_everyday_words():
    secrets = knowing("12345", "", None)
    assert secrets.mask("12345 is the answer") == "12345 is the answer"
    assert knowing("123456").mask("123456 is the answer") == "*** is the answer"


def test_the_longer_one_of_two_secrets_is_masked_first():
    assert knowing("secret-a", "secret-a-and-b").mask("secret-a-and-b") == "***"


def test_only_the_beginning_of_a_very_long_text_is_searched_and_kept():
    text = "a" * (MAX_MASKED - 3)
    assert knowing("canary").mask(f"{text}canary") == f"{text}can"


@pytest.mark.parametrize(
    ("headers", "masked", "kept"),
    [
        ({"X-Api-Key": "canary"}, ["canary"], []),
        ({"Authorization": "Bearer canary=="}, ["canary", "Bearer canary=="], ["Bearer"]),
        ({"Authorization": "Basic dXNlcm5hbWU6Y2FuYXJ5"}, ["canary", "dXNlcm5hbWU6Y2FuYXJ5"], ["username"]),
        ({"Authorization": "Basic Y2FuYXJ5Og=="}, ["canary", "Y2FuYXJ5Og"], []),
        ({"Authorization": "Basic no base64!"}, ["no base64!"], []),
        ({"Cookie": "theme=dark; sid=canary"}, ["canary"], ["theme", "dark"]),
        ({"X-Shop": "a-value-of-16-or-more"}, ["a-value-of-16-or-more"], []),
        ({"X-Shop": "short-one"}, [], ["short-one"]),
        ({"X-Shop": "a sentence of several words"}, [], ["a sentence of several words"]),
        ({"Accept": "application/json; charset=utf-8"}, [], ["application/json"]),
        ({"User-Agent": "a-very-long-user-agent/1.0"}, [], ["a-very-long-user-agent/1.0"]),
    ],
)
def test_the_secrets_of_headers_are_known_by_their_names_and_lengths(headers, masked, kept):
    secrets = Secrets()
    secrets.add_headers(headers)
    assert [secrets.mask(text) for text in masked] == ["***"] * len(masked)
    assert [secrets.mask(text) for text in kept] == kept


@pytest.mark.parametrize(
    "url",
    [
        "https://user:canary%2F@h/",
        "https://canary%2F@h/",
        "redis://:canary%2F@h/0",
        "https://user:canary/@h/?x",
        "https://h/?api_key=canary%2F&x=1",
        "https://h/?client-secret=canary%2F#x",
    ],
)
def test_the_secrets_of_a_url_are_its_password_and_parameters_with_such_names(url):
    secrets = Secrets()
    secrets.add_url(url)
    assert secrets.mask("canary/ or %63anary%2F") == "*** or ***"


@pytest.mark.parametrize(
    "url", ["https://mastodon.example/@somebody.rss", "https://m.example:8443/feed/@me?x=@", "http://[::1]:80/@me"]
)
def test_an_at_sign_in_the_path_of_a_url_does_not_make_its_host_a_secret(url):
    secrets = Secrets()
    secrets.add_url(url)
    assert repr(secrets) == "Secrets(0)"


@pytest.mark.parametrize("url", ["https://me:pass-word@host.example/@me", "https://pass-word@[::1]:80/@me?x=@"])
def test_an_at_sign_in_the_path_of_a_url_does_not_hide_its_password(url):
    """Otherwise the password would include the host, and would not be masked alone."""
    secrets = Secrets()
    secrets.add_url(url)
    with hidden(secrets):
        assert mask("pass-word at host.example") == "*** at host.example"


def test_text_that_is_not_a_url_has_no_secrets():
    secrets = Secrets()
    secrets.add_url("https://[")
    secrets.add_url(None)
    assert repr(secrets) == "Secrets(0)"


def test_the_secrets_of_a_body_are_known_by_their_names_at_any_depth():
    secrets = Secrets()
    secrets.add_body({"client_id": "harmless", "options": [{"accessToken": "canary"}], "count": 5, "key": 5})
    assert secrets.mask("harmless canary") == "harmless ***"


def test_each_value_of_a_list_in_a_body_has_the_name_of_the_list():
    secrets = Secrets()
    secrets.add_body({"token": ["canary", ["canary-2"]], "names": ["harmless"], "auth": [{"user": "harmless"}]})
    assert secrets.mask("harmless canary canary-2") == "harmless *** ***"


def test_the_latest_tokens_of_a_function_are_known():
    secrets = Secrets()
    tokens = [f"token-{number}" for number in range(MAX_RECENT + 3)]
    for token in tokens:
        secrets.add_recent(token)
        assert secrets.mask(token) == "***"
    assert [secrets.mask(token) for token in tokens] == [*tokens[:3], *["***"] * MAX_RECENT]
    secrets.add_recent(tokens[3])
    secrets.add_recent("another")
    assert secrets.mask(tokens[3]) == "***", "it was used lately"


def test_included_secrets_are_known_even_if_added_later():
    inner, outer = Secrets(), Secrets()
    outer.include(inner, None, outer)
    inner.add("canary")
    assert outer.mask("canary") == "***"


def test_text_is_masked_only_where_the_secrets_are_hidden():
    assert quoted("a canary") == "'a canary'"
    with hidden(knowing("canary")), hidden(knowing("another")):
        assert quoted("a canary") == "'a ***'"
        assert quoted("x" * 98 + "canary") == f"'{'x' * 98}**...'", "it is masked before it is cut"
        assert one_line("a canary, another") == "a ***, ***"
        assert describe(ValueError("a canary")) == "ValueError: a ***"
    assert mask("a canary") == "a canary"


def test_hiding_ends_without_an_error_in_another_context():
    manager = hidden(knowing("canary"))
    contextvars.copy_context().run(manager.__enter__)
    manager.__exit__(None, None, None)


def test_log_lines_with_a_traceback_are_masked(caplog):
    log = ConsumerLog(logging.getLogger("push_to_poll_client"))
    with log_as("orders", hide=[knowing("canary")]):
        log.warning("failed: %s", "x", exc_info=ValueError("a canary"))
    assert "ValueError: a ***" in caplog.records[0].exc_text


def test_an_error_that_shows_a_secret_loses_it_and_its_cause():
    error = FeedError("a canary", retry_after=5)
    error.__cause__ = ValueError("another canary")
    with hidden(knowing("canary")):
        hide_in(error)
    assert (str(error), error.__cause__, error.retry_after) == ("a ***", None, 5)


class Broken(Exception):
    def __str__(self):
        raise ValueError


def test_an_error_that_is_cause_and_context_is_searched_once():
    """The same holds for errors of a group that were raised from each other."""
    errors = [ValueError(f"{number}") for number in range(9)]
    for error in errors:
        error.__cause__ = error.__context__ = ValueError("its cause")
    found = [*error_chain(ExceptionGroup("x", errors))]
    assert len(found) == 1 + 2 * len(errors)
    assert {*errors} < {*found}


def test_an_error_shows_a_secret_in_its_text_its_notes_its_causes_and_its_group():
    noted, caused, circle = ValueError("x"), ValueError("x"), ValueError("x")
    noted.add_note("a canary")
    caused.__cause__ = ValueError("a canary")
    circle.__context__ = other = ValueError("y")
    other.__context__ = circle
    group = ExceptionGroup("x", [ValueError("a canary")])
    assert not shows_a_secret(noted), "there is nothing to hide"
    with hidden(knowing("canary")):
        assert all(map(shows_a_secret, (ValueError("a canary"), noted, caused, group)))
        assert not any(map(shows_a_secret, (ValueError("x"), circle, Broken())))
        hide_in(circle)
        assert circle.__context__ is other


def test_known_secrets_are_those_of_feeds_and_listeners_of_this_library():
    class Mine:
        _known_secrets = "something of a user's own class"

    class Ours:
        _known_secrets = knowing("canary")

    assert known_secrets([Mine(), Ours(), object()]) == (Ours._known_secrets,)


def test_a_secret_inside_another_secret_does_not_reveal_the_rest():
    short, long = Secrets(), Secrets()
    short.add("c4n4ry")
    long.add("c4n4ry-t0ken")
    both = Secrets()
    both.add("c4n4ry")
    both.include(long)
    assert both.mask("it is c4n4ry-t0ken") == "it is ***"
    with hidden(short, long):
        assert mask("it is c4n4ry-t0ken") == "it is ***"


def test_each_value_of_a_repeated_url_parameter_is_known():
    secrets = Secrets()
    secrets.add_url("https://shop.example/orders?token=c4n4ry-1&token=c4n4ry-2")
    assert secrets.mask("c4n4ry-1 c4n4ry-2") == "*** ***"
