"""Redirects: the method and body that they keep, and the ones that are remembered."""

import logging
from contextlib import suppress

import anyio
import httpx
import pytest

from push_to_poll_client._exceptions import FeedError, FeedRefused
from push_to_poll_client._http.caching import Validators
from push_to_poll_client._http.redirects import (
    MAX_AGE,
    MAX_CONFIRMED_PATHS,
    MAX_REMEMBERED_REDIRECTS,
    MAX_STEPS,
    Redirects,
)
from tests.feeds.test_http_feed import SECRET, URL
from tests.web.test_client import CDN, ask, origin, refused, serve

pytestmark = pytest.mark.anyio

__all__ = ["serve"]  # the fixture

HOME = "https://shop.example"


def moved(location, status=301, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers={"location": location, **named})


async def read(asked, url=URL, **given):
    """A response from which a page of the feed was read."""
    answer = await ask(asked, url, **given)
    asked.remember_redirects(answer)
    return answer


def urls(server):
    return [str(request.url).removeprefix(HOME) for request in server.requests]


class TestMethodAndBody:
    @pytest.mark.parametrize(
        ("status", "method", "becomes"),
        [
            (301, "GET", "GET"),
            (301, "POST", "GET"),
            (301, "PUT", "PUT"),
            (302, "GET", "GET"),
            (302, "POST", "GET"),
            (302, "REPORT", "REPORT"),
            (303, "GET", "GET"),
            (303, "POST", "GET"),
            (303, "PUT", "GET"),
            (303, "HEAD", "HEAD"),
            (307, "POST", "POST"),
            (308, "POST", "POST"),
        ],
    )
    async def test_a_redirect_keeps_method_and_body_unless_rfc_9110_changes_it_to_get(
        self, serve, status, method, becomes
    ):
        """The table is RFC 9110 §15.4."""
        server = serve(moved("/v2", status), httpx.Response(200))
        content = None if method in {"GET", "HEAD"} else b"{}"
        headers = {"accept": "a/b"} | ({} if content is None else {"content-type": "application/json"})
        await ask(origin(), method=method, content=content, headers=headers)
        kept = content if becomes == method else None
        assert server.last.method == becomes
        assert server.last.content == (kept or b"")
        assert server.last.headers.get("content-type") == (None if kept is None else "application/json")
        assert server.last.headers["accept"] == "a/b"

    async def test_a_post_redirected_as_get_goes_to_a_trusted_origin_without_its_body(self, serve):
        """The body may contain a secret."""
        server = serve(moved(f"{CDN}/p", 303), httpx.Response(200))
        await ask(origin(trusted_origins=[CDN], auth=SECRET), method="POST", content=SECRET.encode())
        assert (server.last.method, server.last.content) == ("GET", b"")
        assert "authorization" not in server.last.headers


class TestMoves:
    @pytest.mark.parametrize(
        ("status", "second"), [(301, "/v2"), (308, "/v2"), (302, "/orders"), (303, "/orders"), (307, "/orders")]
    )
    async def test_only_permanent_redirects_are_remembered(self, serve, status, second):
        server = serve(moved("/v2", status), httpx.Response(200))
        asked = origin()
        assert (await read(asked)).url == f"{HOME}/v2"
        assert (await read(asked)).url == f"{HOME}{second}"
        assert urls(server) == ["/orders", "/v2", second]

    async def test_a_remembered_redirect_applies_to_every_query_if_it_kept_the_query(self, serve):
        server = serve(moved("/v2?a=1", 308), httpx.Response(200))
        asked = origin()
        for query in ("?a=1", "?a=2", "", "?"):
            await read(asked, f"{URL}{query}")
        assert urls(server)[1:] == ["/v2?a=1", "/v2?a=2", "/v2", "/v2?"]

    async def test_a_remembered_redirect_applies_to_one_url_if_it_changed_the_query(self, serve):
        server = serve(moved("/v2?b=1"), httpx.Response(200))
        asked = origin()
        for query in ("?a=1", "?a=2", "?a=1", ""):
            await read(asked, f"{URL}{query}")
        assert urls(server) == ["/orders?a=1", "/v2?b=1", "/orders?a=2", "/v2?b=1", "/orders"]

    async def test_validators_are_used_at_the_new_url_of_a_remembered_redirect(self, serve):
        server = serve(
            moved("/v2"),
            httpx.Response(200, headers={"etag": '"a"'}),
            httpx.Response(200, headers={"etag": '"a"'}),
            httpx.Response(304),
        )
        asked = origin()
        assert (await read(asked)).validators is None
        known = (await read(asked)).validators
        assert known == Validators('"a"')
        assert (await read(asked, known=known)).status == 304
        assert server.last.headers["if-none-match"] == '"a"'

    async def test_a_remembered_redirect_to_a_trusted_origin_sends_no_credentials(self, serve):
        server = serve(moved(f"{CDN}/p"), httpx.Response(200))
        asked = origin(auth=SECRET, trusted_origins=[CDN])
        for _ in range(2):
            await read(asked)
        assert urls(server) == ["/orders", f"{CDN}/p", f"{CDN}/p"]
        assert "authorization" not in server.last.headers

    async def test_a_redirect_of_a_post_is_remembered_only_if_it_keeps_the_method(self, serve):
        server = serve(
            moved("/v2", 308), httpx.Response(200), httpx.Response(200), moved("/v3", 301), httpx.Response(200)
        )
        asked = origin()
        for _ in range(4):
            await read(asked, method="POST", content=b"{}")
        assert urls(server) == ["/orders", "/v2", "/v2", "/v2", "/v3", "/v2"]

    @pytest.mark.parametrize("told", ["no-store", "no-cache", "max-age=0"])
    async def test_a_redirect_that_forbids_caching_is_not_remembered(self, serve, told):
        server = serve(moved("/v2", cache_control=told), httpx.Response(200))
        asked = origin()
        for _ in range(2):
            await read(asked)
        assert urls(server)[2] == "/orders"

    @pytest.mark.parametrize(
        "wrong",
        [
            httpx.Response(404),
            httpx.Response(503),
            httpx.ReadError("reset"),
            httpx.Response(302, headers={"location": "https://login.example/"}),
            httpx.Response(200, content=b" " * 10_001),
        ],
    )
    async def test_a_remembered_redirect_is_forgotten_after_an_error_at_its_target(self, serve, wrong):
        server = serve(moved("/v2"), httpx.Response(200), wrong, httpx.Response(200))
        asked = origin()
        await read(asked)
        await refused(asked, kind=FeedRefused) if getattr(wrong, "status_code", 0) == 404 else await refused(asked)
        await read(asked)
        assert urls(server) == ["/orders", "/v2", "/v2", "/orders"]

    async def test_a_remembered_redirect_expires_after_an_hour(self, serve):
        server = serve(moved("/maintenance"), httpx.Response(200))
        asked = origin()
        await read(asked)
        await anyio.sleep(MAX_AGE - 1)
        await read(asked)
        await anyio.sleep(2)
        await read(asked)
        assert urls(server) == ["/orders", "/maintenance", "/maintenance", "/orders"]

    async def test_a_remembered_redirect_is_logged_once_and_without_secrets(self, serve, caplog):
        serve(
            moved(f"/v2?key={SECRET}"),
            httpx.Response(200),
            httpx.Response(500),
            moved(f"/v2?key={SECRET}"),
            httpx.Response(200),
        )
        asked = origin()
        await read(asked, f"{URL}?a={SECRET}")
        await read(asked, f"{URL}?a={SECRET}")
        await read(asked, f"{URL}?a={SECRET}")
        (told,) = caplog.records
        assert (told.name, told.levelno) == ("push_to_poll_client", logging.WARNING)
        assert told.getMessage() == f"{URL}?a=… has moved permanently: configure its new URL, {HOME}/v2?key=…"

    async def test_a_redirect_is_not_remembered_before_a_page_was_read_at_its_end(self, serve, caplog):
        server = serve(moved("/maintenance", 308), httpx.Response(200), moved("/v2", 308), httpx.Response(200))
        asked = origin()
        await ask(asked)
        await read(asked)
        await read(asked)
        assert urls(server) == ["/orders", "/maintenance", "/orders", "/v2", "/v2"]
        assert [record.getMessage() for record in caplog.records] == [
            f"{URL} has moved permanently: configure its new URL, {HOME}/v2"
        ]

    @pytest.mark.parametrize("answer", [404, 410, 500])
    async def test_a_redirect_that_ends_in_an_error_is_not_remembered(self, serve, answer):
        server = serve(moved("/gone", 308), httpx.Response(answer), httpx.Response(200))
        asked = origin()
        with suppress(FeedError):
            asked.remember_redirects(await ask(asked))
        await read(asked)
        assert urls(server) == ["/orders", "/gone", "/orders"]

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize("answer", [404, 410])
    async def test_404_or_410_after_a_redirect_is_a_plain_feed_error(self, serve, status, answer):
        serve(moved("/maintenance", status), httpx.Response(answer, headers={"retry-after": "7"}))
        asked = origin()
        with pytest.raises(FeedError) as error:
            await ask(asked)
        assert type(error.value) is FeedError
        assert error.value.retry_after == 7
        assert f"{URL} was redirected to {HOME}/maintenance, which answered {answer}" in str(error.value)

    @pytest.mark.parametrize("status", [302, 308])
    async def test_410_after_a_redirect_is_accepted_if_a_page_was_read_there_before(self, serve, status):
        serve(moved("/v2", status), httpx.Response(200), moved("/v2", status), httpx.Response(410))
        asked = origin()
        await read(asked, f"{URL}?page=1")
        asked._redirects.forget()
        assert (await ask(asked, f"{URL}?page=2")).status == 410

    async def test_redirects_in_a_circle_are_a_feed_error(self, serve):
        back = {"/orders": "/v2", "/v2": "/orders"}
        serve(lambda request: moved(back[request.url.path]))
        asked = origin()
        for _ in range(3):
            assert "more than 5 times" in await refused(asked)


class TestWhatIsRemembered:
    async def test_a_url_that_moved_back_has_no_remembered_redirect(self):
        moves = Redirects(str)
        moves.learn("a", "b")
        moves.learn("b", "a")
        assert (moves.resolve("a"), moves.resolve("b")) == ("a", "a")

    async def test_at_most_max_steps_remembered_redirects_are_followed(self):
        moves = Redirects(str)
        for number in range(MAX_STEPS + 2):
            moves.learn(f"{number}?x", f"{number + 1}?x")
        assert moves.resolve("0?y") == f"{MAX_STEPS}?y"
        assert moves.resolve("3?y") == f"{MAX_STEPS + 2}?y"

    async def test_a_circle_of_remembered_redirects_is_not_followed_for_ever(self):
        moves = Redirects(str)
        for old, new in ("ab", "bc", "ca"):
            moves.learn(old, new)
        assert moves.resolve("a") in "abc"

    async def test_the_number_of_remembered_redirects_is_bounded(self):
        moves = Redirects(str)
        moves.learn("a", "new")
        moves.learn("b?x", "new")
        for number in range(MAX_REMEMBERED_REDIRECTS - 1):
            moves.learn(f"{number}", f"new{number}")
        assert [moves.resolve("a"), moves.resolve("b?x"), moves.resolve("0")] == ["a", "new", "new0"]
        moves.learn("c?x", "new")
        assert [moves.resolve("b?x"), moves.resolve("c?x"), moves.resolve("0")] == ["b?x", "new", "new0"]

    async def test_the_number_of_remembered_paths_with_a_read_page_is_bounded(self):
        moves = Redirects(str)
        for number in range(MAX_CONFIRMED_PATHS + 1):
            moves.confirm("0")
            moves.confirm(f"{number}?x")
        assert [moves.is_confirmed(url) for url in ("0?y", "1", "2", f"{MAX_CONFIRMED_PATHS}")] == [
            True,
            False,
            True,
            True,
        ]

    async def test_a_redirect_of_a_url_to_itself_is_not_remembered(self):
        moves = Redirects(str)
        moves.learn("a", "a")
        assert moves.resolve("a") == "a"
