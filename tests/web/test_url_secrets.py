"""A secret in the path of a URL, as Telegram requires: it is sent, but never shown."""

import logging
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from push_to_poll_client._exceptions import FeedRefused
from push_to_poll_client._http import origins
from push_to_poll_client._http.origins import MAX_SECRET, FeedURL
from push_to_poll_client._http.response import find_link
from tests.web.test_client import CDN, ask, origin, refused, serve

pytestmark = pytest.mark.anyio

__all__ = ["serve"]  # the fixture

TOKEN = "123:s3cr3t-c4n4ry/ü"
SENT = "123:s3cr3t-c4n4ry%2F%C3%BC"
TEMPLATE = "https://bots.example/bot{token}/updates"
SHOWN = "https://bots.example/bot{token}/updates"
ECHOES = [
    SENT,
    SENT.lower(),
    quote(TOKEN, safe=""),
    "123:s3cr3t-c4n4ry/%c3%BC",
    "%31%32%33:s3cr3t-c4n4ry%2f%C3%BC",
]


def bot(**given):
    return origin(TEMPLATE, url_secrets={"token": TOKEN}, **given)


def check_is_hidden(*texts):
    for text in texts:
        assert "s3cr3t" not in text
        assert "c4n4ry" not in text


async def test_a_secret_in_the_path_is_sent_and_not_shown(serve):
    server = serve(httpx.Response(404))
    asked = bot()
    text = await refused(asked, asked.build_url({"offset": "5"}), FeedRefused)
    assert server.last.url.raw_path == f"/bot{SENT}/updates?offset=5".encode()
    assert text.startswith(f"{SHOWN} answered 404")
    assert asked.where == SHOWN
    check_is_hidden(text, asked.identity)


@pytest.mark.parametrize("echo", ECHOES)
async def test_a_redirect_that_takes_the_secret_to_another_origin_is_refused(serve, echo):
    """The server copies the requested URL into its redirects, so this applies even to allowed origins."""
    server = serve(httpx.Response(302, headers={"location": f"{CDN}/bot{echo}/updates"}))
    asked = bot(trusted_origins=[CDN])
    text = await refused(asked, asked.build_url({}))
    assert text.startswith(f"{SHOWN} redirects to another origin, {CDN}/, with a secret of this feed in the URL")
    assert len(server.requests) == 1
    check_is_hidden(text)


async def test_the_secret_is_masked_in_logs(serve, caplog):
    caplog.set_level(logging.DEBUG)
    server = serve(httpx.Response(308, headers={"location": f"/v2/bot{SENT}/updates"}), httpx.Response(200))
    asked = bot()
    asked.remember_redirects(await ask(asked, asked.build_url({"offset": "5"})))
    assert server.last.url.raw_path == f"/v2/bot{SENT}/updates".encode()
    assert "GET https://bots.example/bot{token}/updates?offset=…" in caplog.text
    assert "its new URL, https://bots.example/v2/bot{token}/updates" in caplog.text
    check_is_hidden(caplog.text)


@pytest.mark.parametrize("echo", ECHOES)
async def test_the_secret_is_masked_in_the_error_about_a_redirect(serve, echo):
    serve(httpx.Response(302, headers={"location": f"https://evil.example/bot{echo}"}))
    moved = await refused(bot(), bot().build_url({}))
    assert "redirects to another origin" in moved
    check_is_hidden(moved)


async def test_the_secret_is_masked_in_an_error_of_the_client(serve):
    serve(httpx.RemoteProtocolError(f"illegal request line: GET /bot{SENT}/"))
    text = await refused(bot(), bot().build_url({}))
    assert "GET /bot{token}/" in text
    check_is_hidden(text)


async def test_the_secret_is_masked_in_the_error_about_an_invalid_link(serve):
    serve(httpx.Response(200, headers={"link": f"<https://h:{SENT}/>; rel=next"}))
    answer = await ask(bot(), bot().build_url({}))
    with pytest.raises(Exception, match="link that is not a URL") as failed:
        find_link(answer, "next")
    check_is_hidden(str(failed.value))


def test_feeds_with_different_secrets_have_different_identities():
    """A cursor of one bot is invalid for the other."""
    one, other = bot(), origin(TEMPLATE, url_secrets={"token": "5"})
    assert one.identity.startswith(f"{SHOWN}#")
    assert one.identity != other.identity
    assert origin(TEMPLATE).identity == origins.identity(TEMPLATE)


def test_one_secret_may_be_contained_in_another():
    hidden = FeedURL("https://h/{a}/{b}?key={a}", {"a": "12", "b": "123"})
    assert hidden.url == "https://h/12/123?key=12"
    assert hidden.redact(hidden.url) == "https://h/{a}/{b}?key=…"


@pytest.mark.parametrize(
    ("template", "secrets", "error", "text"),
    [
        (TEMPLATE, {"token": ""}, ValueError, "'token' must have 1 to 4096 characters, got 0"),
        (
            TEMPLATE,
            {"token": "a" * (MAX_SECRET + 1)},
            ValueError,
            "'token' must have 1 to 4096 characters, got 4097",
        ),
        (TEMPLATE, {"key": TOKEN}, ValueError, "url must contain {key} in its path or query"),
        ("https://{token}.example/", {"token": TOKEN}, ValueError, "url must contain {token} in its path"),
        ("https://me:{token}@h.example/", {"token": TOKEN}, ValueError, "url must contain {token} in its path"),
        (TEMPLATE, {"token": 5}, TypeError, "url_secrets must map str to str, got int for 'token'"),
        (TEMPLATE, {5: TOKEN}, TypeError, "url_secrets must map str to str, got str for 5"),
        ("/bot{token}", {"token": TOKEN}, ValueError, "url must start"),
    ],
)
def test_invalid_secrets_are_refused_and_not_shown(template, secrets, error, text):
    with pytest.raises(error) as wrong:
        origin(template, url_secrets=secrets)
    assert text in str(wrong.value)
    check_is_hidden(str(wrong.value))


@given(st.text(min_size=6, max_size=20), st.sampled_from(["", ":@", "/?#&="]))
def test_a_secret_is_masked_in_plain_and_in_percent_encoded_form(secret, safe):
    hidden = FeedURL("https://h/{s}", {"s": secret})
    written = quote(secret, safe=safe, errors="surrogatepass")
    assert hidden.mask(f"x{written}y{secret}z") == "x{s}y{s}z" or secret in "x{s}y{s}z"
