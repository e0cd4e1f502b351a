"""The HTTP feed: requests, responses, credentials. In virtual time, without sockets."""

import gzip
import logging
import sys
import threading
import time
import tracemalloc
import types
import zlib

import anyio
import anyio.lowlevel
import httpx
import pytest
import respx

from push_to_poll_client import _types, feeds
from push_to_poll_client._exceptions import FeedError, FeedGone, FeedRefused
from push_to_poll_client._http.transport import open_client
from push_to_poll_client._types import MAX_NOT_BEFORE, FetchRequest, Page
from push_to_poll_client.feeds import CloudEvent, HTTPFeed, http_feed
from tests.support.forms import form

pytestmark = pytest.mark.anyio

URL = "https://shop.example/orders"
SECRET = "s3cr3t-c4n4ry"


class Server:
    """Send the given responses in turn, the last one for ever; record the requests."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    async def __call__(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer

    @property
    def last(self):
        return self.requests[-1]


@pytest.fixture
def serve():
    """Answer every request of every client, for any host."""
    with respx.mock(assert_all_called=False) as router:

        def start(*answers):
            server = Server(*answers)
            router.route().mock(side_effect=server)
            return server

        yield start


def batch(*ids, status=200, **kwargs):
    return httpx.Response(status, json=[{"id": name, "source": "s"} for name in ids], **kwargs)


def ids(page):
    return [message.id for message in page.messages]


async def fetch(feed, cursor=None, **kwargs):
    """Fetch once, and close the feed."""
    try:
        return await feed.fetch(FetchRequest(cursor, **kwargs))
    finally:
        await feed.aclose()


async def refused(feed, kind=FeedError, **kwargs):
    with pytest.raises(kind) as failed:
        await fetch(feed, **kwargs)
    assert type(failed.value) is kind
    text = str(failed.value)
    assert text.isprintable()
    assert len(text) < 500
    assert SECRET not in text
    return failed.value


class TestWhatIsAsked:
    async def test_a_fetch_at_the_inception_requests_the_plain_url(self, serve):
        server = serve(batch())
        await fetch(HTTPFeed(URL))
        assert str(server.last.url) == URL
        assert server.last.headers["accept"] == "application/cloudevents-batch+json, application/json;q=0.9"
        assert server.last.headers["accept-encoding"] == "gzip"
        assert "cache-control" not in server.last.headers
        assert "authorization" not in server.last.headers

    async def test_a_fetch_sends_the_cursor_as_last_event_id(self, serve):
        server = serve(batch())
        await fetch(HTTPFeed(URL), "17")
        assert str(server.last.url) == f"{URL}?lastEventId=17"

    @pytest.mark.parametrize("cursor", ["a b", "1+1", "a&b=c", "é/😀", "100%", "%2F", "0001::5f8d", "#", "a\nb"])
    async def test_a_cursor_reaches_the_server_unchanged(self, serve, cursor):
        server = serve(batch())
        await fetch(HTTPFeed(URL), cursor)
        assert dict(server.last.url.params) == {"lastEventId": cursor}

    @pytest.mark.parametrize("query", ["tenant=a", "sig=%2Fa+b%20c&flag&x=1&x=2", "q=a/b:c"])
    async def test_the_query_of_the_url_is_sent_unchanged(self, serve, query):
        # A signature covers the bytes of a query, and parsing would change them.
        server = serve(batch())
        await fetch(HTTPFeed(f"{URL}?{query}"), "17")
        assert server.last.url.query == f"{query}&lastEventId=17".encode()

    @pytest.mark.parametrize("suffix", ["?", "#frag", "?#"])
    async def test_a_fragment_and_an_empty_query_of_the_url_are_dropped(self, serve, suffix):
        server = serve(batch())
        await fetch(HTTPFeed(URL + suffix), "17")
        assert str(server.last.url) == f"{URL}?lastEventId=17"

    async def test_a_fresh_fetch_sends_cache_control_no_cache(self, serve):
        server = serve(batch())
        await fetch(HTTPFeed(URL), bypass_cache=True)
        assert server.last.headers["cache-control"] == "no-cache"

    async def test_headers_of_the_user_override_the_default_headers(self, serve):
        server = serve(batch())
        await fetch(HTTPFeed(URL, headers={"X-Tenant": "a", "accept": "application/json"}))
        assert server.last.headers["x-tenant"] == "a"
        assert server.last.headers.get_list("accept") == ["application/json"]

    @pytest.mark.parametrize(
        ("wait", "max_wait", "asked"),
        [
            (5, 20, "5000"),
            (60, 20, "20000"),
            (0.0001, 20, "1"),
            (0, 20, None),
            (5, None, None),
        ],
    )
    async def test_a_long_poll_sends_its_wait_in_milliseconds_and_at_most_max_wait(
        self, serve, wait, max_wait, asked
    ):
        server = serve(batch())
        feed = HTTPFeed(URL, max_wait=max_wait)
        assert feed.max_wait == max_wait
        await fetch(feed, wait=wait)
        assert server.last.url.params.get("timeout") == asked


class TestWhatAnAnswerMeans:
    async def test_events_become_messages_and_the_last_id_becomes_the_cursor_and_next(self, serve):
        serve(batch("1", "2"))
        page = await fetch(HTTPFeed(URL))
        assert ids(page) == ["1", "2"]
        assert [message.cursor for message in page.messages] == ["1", "2"]
        assert (page.cursor, page.next_page, page.retry_after) == ("2", "2", None)

    @pytest.mark.parametrize("answer", [batch(), httpx.Response(204)])
    async def test_an_empty_batch_or_204_is_the_end_of_the_feed(self, serve, answer):
        serve(answer)
        assert await fetch(HTTPFeed(URL), "7") == _types.Page([])

    async def test_a_page_that_ends_with_the_requested_cursor_is_the_end_of_the_feed(self, serve):
        # A server that includes the event of the cursor would send its last event for ever, without a pause.
        serve(batch("7"))
        page = await fetch(HTTPFeed(URL), "7")
        assert (ids(page), page.cursor, page.next_page) == (["7"], "7", None)

    async def test_an_unreadable_last_event_still_gives_the_cursor(self, serve):
        serve(httpx.Response(200, json=[{"id": "1"}, {"id": "2", "type": 5}]))
        page = await fetch(HTTPFeed(URL))
        assert (page.cursor, page.next_page) == ("2", "2")

    async def test_an_unreadable_id_is_never_a_cursor(self, serve):
        serve(httpx.Response(200, json=[{"id": "1"}, {"id": 2}]), httpx.Response(200, json=[{"id": 2}]))
        feed = HTTPFeed(URL)
        page = await feed.fetch(FetchRequest())
        assert (len(page.messages), page.cursor, page.next_page) == (2, "1", "1")
        page = await fetch(feed, "1")
        assert (len(page.messages), page.cursor, page.next_page) == (1, None, None)

    @pytest.mark.parametrize(
        "stated",
        [
            "application/cloudevents-batch+json",
            "application/cloudevents-batch+json; charset=utf-8",
            "Application/JSON",
            "text/json",
            None,
        ],
    )
    async def test_a_json_body_is_read_with_each_json_content_type_or_none(self, serve, stated):
        serve(httpx.Response(200, content=b'[{"id":"1"}]', headers={"content-type": stated} if stated else {}))
        assert ids(await fetch(HTTPFeed(URL))) == ["1"]

    async def test_an_html_page_is_a_feed_error(self, serve):
        serve(httpx.Response(200, html="<html>"))
        error = await refused(HTTPFeed(URL))
        assert str(error).startswith(
            f"{URL} sent 'text/html; charset=utf-8', not application/cloudevents-batch+json"
        )

    async def test_a_hostile_content_type_is_shortened_and_escaped_in_the_error(self, serve):
        serve(httpx.Response(200, content=b"", headers={"content-type": "text/\x1b[2J" + "x" * 5000}))
        await refused(HTTPFeed(URL))

    async def test_a_json_body_that_is_not_an_array_is_a_feed_error(self, serve):
        serve(httpx.Response(200, json={"error": "no"}))
        assert "did not send a JSON array" in str(await refused(HTTPFeed(URL)))

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 406, 407, 414, 418, 451])
    async def test_a_client_error_status_raises_feed_refused(self, serve, status):
        serve(httpx.Response(status))
        error = await refused(HTTPFeed(URL), FeedRefused)
        assert str(error).startswith(f"{URL} answered {status} ")
        assert error.retry_after is None

    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
    async def test_a_temporary_error_status_is_a_feed_error_with_retry_after(self, serve, status):
        serve(httpx.Response(status, headers={"retry-after": "7"}))
        error = await refused(HTTPFeed(URL))
        assert str(error).startswith(f"{URL} answered {status}")
        assert error.retry_after == 7

    @pytest.mark.parametrize("status", [201, 206, 300, 302, 305])
    async def test_an_unexpected_status_is_a_feed_error(self, serve, status):
        serve(httpx.Response(status, json=[]))
        await refused(HTTPFeed(URL))

    async def test_a_refusal_keeps_the_retry_after_of_the_response(self, serve):
        serve(httpx.Response(404, headers={"retry-after": "60"}))
        assert (await refused(HTTPFeed(URL), FeedRefused)).retry_after == 60

    async def test_403_with_an_empty_quota_is_not_a_refusal(self, serve):
        serve(httpx.Response(403, headers={"x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"}))
        assert (await refused(HTTPFeed(URL))).retry_after == 30

    async def test_410_raises_feed_gone(self, serve):
        serve(httpx.Response(410))
        await refused(HTTPFeed(URL), FeedGone)

    async def test_a_backoff_or_poll_interval_of_a_successful_response_becomes_retry_after(self, serve):
        serve(batch("1", headers={"backoff": "30"}), batch(headers={"x-poll-interval": "60"}))
        feed = HTTPFeed(URL)
        assert (await feed.fetch(FetchRequest())).retry_after == 30
        assert (await fetch(feed)).retry_after == 60

    async def test_a_rate_limit_reset_becomes_seconds_from_now(self, serve):
        headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(round(time.time()) + 1000)}
        serve(batch("1", headers=headers))
        assert 990 < (await fetch(HTTPFeed(URL))).retry_after <= 1001 < MAX_NOT_BEFORE


class TestTheEnd:
    """Requests at the end of the feed, where most polls happen."""

    async def test_a_repeated_fetch_of_an_empty_page_sends_its_etag(self, serve):
        server = serve(
            batch(headers={"etag": '"e"', "x-poll-interval": "5"}),
            httpx.Response(304, headers={"x-poll-interval": "60"}),
            batch("18", headers={"etag": '"f"'}),
            batch(),
        )
        feed = HTTPFeed(URL)
        assert await feed.fetch(FetchRequest("17")) == Page([], retry_after=5)
        assert await feed.fetch(FetchRequest("17")) == Page([], retry_after=60)
        assert ids(await feed.fetch(FetchRequest("17"))) == ["18"]
        await feed.fetch(FetchRequest("18"))
        await fetch(feed, "17")
        asked = [request.headers.get("if-none-match") for request in server.requests]
        assert asked == [None, '"e"', '"e"', None, None]

    async def test_a_page_with_messages_is_always_requested_again_without_its_etag(self, serve):
        """If a crash prevented its processing, a 304 would hide the page for ever."""
        server = serve(batch("18", headers={"etag": '"e"', "cache-control": "max-age=60"}))
        feed = HTTPFeed(URL)
        for _ in range(3):
            assert ids(await feed.fetch(FetchRequest("17"))) == ["18"]
        await feed.aclose()
        assert not any("if-none-match" in request.headers for request in server.requests)

    async def test_an_empty_page_is_not_requested_again_before_max_age_ends(self, serve):
        server = serve(batch(headers={"cache-control": "max-age=60", "age": "20"}), batch("18"))
        feed = HTTPFeed(URL)
        await feed.fetch(FetchRequest("17"))
        await anyio.sleep(39)
        assert await feed.fetch(FetchRequest("17")) == Page()
        assert len(server.requests) == 1
        await anyio.sleep(2)
        assert ids(await fetch(feed, "17")) == ["18"]

    @pytest.mark.parametrize("more", [{"bypass_cache": True}, {"wait": 5}])
    async def test_a_fetch_with_fresh_or_wait_ignores_max_age(self, serve, more):
        serve(batch(headers={"cache-control": "max-age=60"}), batch("18"))
        feed = HTTPFeed(URL, max_wait=60)
        await feed.fetch(FetchRequest("17", wait=more.get("wait", 0)))
        assert ids(await fetch(feed, "17", **more)) == ["18"]

    async def test_closing_the_feed_forgets_the_etag_and_max_age_of_an_empty_page(self, serve):
        server = serve(batch(headers={"cache-control": "max-age=60", "etag": '"e"'}))
        feed = HTTPFeed(URL)
        await fetch(feed, "17")
        await fetch(feed, "17")
        assert "if-none-match" not in server.last.headers
        assert len(server.requests) == 2

    async def test_304_for_a_request_without_conditions_is_a_feed_error(self, serve):
        serve(httpx.Response(304, headers={"retry-after": "7"}))
        error = await refused(HTTPFeed(URL))
        assert str(error).startswith(f"{URL} answered 304 Not Modified to a request without an ETag or a date")
        assert error.retry_after == 7


class TestRedirects:
    async def test_redirects_within_the_origin_are_followed_with_credentials(self, serve):
        server = serve(
            httpx.Response(308, headers={"location": "/orders/?lastEventId=17"}),
            httpx.Response(302, headers={"location": "https://SHOP.example:443/v2/orders#frag"}),
            batch("18"),
        )
        assert ids(await fetch(HTTPFeed(URL, auth=SECRET), "17")) == ["18"]
        assert [str(request.url) for request in server.requests] == [
            "https://shop.example/orders?lastEventId=17",
            "https://shop.example/orders/?lastEventId=17",
            "https://shop.example/v2/orders",
        ]
        assert server.last.headers["authorization"] == f"Bearer {SECRET}"

    @pytest.mark.parametrize(
        "answer", [httpx.Response(410), httpx.Response(200, headers={"content-type": "text/html"})]
    )
    async def test_a_permanent_redirect_is_not_remembered_if_no_batch_was_read_at_its_target(self, serve, answer):
        server = serve(
            httpx.Response(308, headers={"location": "/maintenance?lastEventId=17"}), answer, batch("18")
        )
        feed = HTTPFeed(URL)
        assert type(await refused(feed, cursor="17")) is FeedError
        assert ids(await fetch(feed, "17")) == ["18"]
        assert server.last.url.path == "/orders"

    async def test_a_permanent_redirect_is_remembered_if_a_batch_was_read_at_its_target(self, serve):
        server = serve(httpx.Response(308, headers={"location": "/v2?lastEventId=17"}), batch("18"))
        feed = HTTPFeed(URL)
        for _ in range(2):
            assert ids(await fetch(feed, "17")) == ["18"]
        assert [request.url.path for request in server.requests] == ["/orders", "/v2", "/v2"]

    @pytest.mark.parametrize(
        ("location", "shown"),
        [
            (f"https://login.example/{SECRET}?to={SECRET}", "https://login.example/"),
            (f"https://u:{SECRET}@evil.example/", "https://evil.example/"),
            ("//evil.example/orders", "https://evil.example/"),
            ("http://shop.example/orders", "http://shop.example/"),
            ("https://shop.example:8443/orders", "https://shop.example:8443/"),
            ("https://shop.example.evil.example/orders", "https://shop.example.evil.example/"),
            ("https://shop.example@evil.example/orders", "https://evil.example/"),
            ("https://www.shop.example/orders", "https://www.shop.example/"),
        ],
    )
    async def test_a_redirect_to_another_origin_is_not_followed(self, serve, location, shown):
        server = serve(httpx.Response(302, headers={"location": location}), batch("1"))
        error = await refused(HTTPFeed(URL, auth=SECRET, headers={"X-Key": SECRET}))
        assert f"redirects to another origin, {shown}," in str(error)
        assert len(server.requests) == 1

    async def test_credentials_in_a_redirect_location_are_not_sent(self, serve):
        server = serve(httpx.Response(302, headers={"location": "https://mallory:pw@shop.example/v2"}), batch("1"))
        await fetch(HTTPFeed(URL))
        assert "authorization" not in server.last.headers

    @pytest.mark.parametrize(
        "location", ["http:[", "https://shop.example:port/", "https://h\x7f/", "//[::", ":https://["]
    )
    async def test_a_redirect_to_an_invalid_url_is_a_feed_error(self, serve, location):
        serve(httpx.Response(302, headers={"location": location}))
        assert "redirect" in str(await refused(HTTPFeed(URL)))
        async with httpx.AsyncClient() as client:
            assert "could not be read: " in str(await refused(HTTPFeed(URL, client=client)))

    async def test_a_redirect_to_an_undecodable_host_name_is_a_feed_error(self, serve):
        """The idna package raises a UnicodeError, which httpx does not catch."""
        serve(httpx.Response(302, headers={"location": "http://xn--zz/"}))
        assert "redirects to another origin, http://xn--zz/" in str(await refused(HTTPFeed(URL)))
        text = "could not be read: the server redirected to an invalid URL"
        async with httpx.AsyncClient() as client:
            assert text in str(await refused(HTTPFeed(URL, client=client)))

    async def test_a_redirect_location_may_leave_out_the_host(self, serve):
        """Browsers and httpx accept this."""
        server = serve(httpx.Response(302, headers={"location": "https:/v2/orders"}), batch("1"))
        assert ids(await fetch(HTTPFeed(URL))) == ["1"]
        assert str(server.last.url) == "https://shop.example/v2/orders"

    async def test_more_than_five_redirects_are_a_feed_error(self, serve):
        server = serve(httpx.Response(302, headers={"location": "/orders"}))
        assert "more than 5 times" in str(await refused(HTTPFeed(URL)))
        assert len(server.requests) == 6

    async def test_redirects_are_not_followed_by_the_users_client(self, serve):
        server = serve(httpx.Response(302, headers={"location": "https://evil.example/"}), batch("1"))
        async with httpx.AsyncClient(follow_redirects=True) as client:
            await refused(HTTPFeed(URL, auth=SECRET, client=client))
        assert len(server.requests) == 1


class Provider:
    """An async callable that returns its tokens in turn."""

    def __init__(self, *tokens):
        self.tokens = list(tokens)
        self.asked = 0

    async def __call__(self):
        self.asked += 1
        token = self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]
        if isinstance(token, Exception):
            raise token
        return token


def accepts(token):
    def answer(request):
        return batch("1") if request.headers.get("authorization") == f"Bearer {token}" else httpx.Response(401)

    return answer


class TestCredentials:
    @pytest.mark.parametrize(
        ("url", "auth", "sent"),
        [
            (URL, ("key", "secret"), "Basic a2V5OnNlY3JldA=="),
            (URL, ("é", "ü"), "Basic w6k6w7w="),
            (URL, "token", "Bearer token"),
            (URL, httpx.BasicAuth("key", "secret"), "Basic a2V5OnNlY3JldA=="),
            ("https://key:secret@shop.example/orders", None, "Basic a2V5OnNlY3JldA=="),
            ("https://k%40y:s%2Fcret@shop.example/orders", None, "Basic a0B5OnMvY3JldA=="),
            (URL, Provider("token"), "Bearer token"),
            (URL, lambda: "token", "Bearer token"),
            (URL, Provider(None), None),
        ],
    )
    async def test_credentials_are_sent_in_the_authorization_header(self, serve, url, auth, sent):
        server = serve(batch())
        await fetch(HTTPFeed(url, auth=auth))
        assert server.last.headers.get("authorization") == sent
        assert not server.last.url.userinfo

    async def test_a_token_callable_is_called_at_first_use_and_its_token_is_kept(self, serve):
        server = serve(batch("1"))
        provider = Provider("a", "b")
        feed = HTTPFeed(URL, auth=provider)
        assert provider.asked == 0
        for _ in range(3):
            await fetch(feed)
        assert provider.asked == 1
        assert server.last.headers["authorization"] == "Bearer a"

    async def test_a_token_callable_is_called_again_when_its_token_has_expired(self, serve):
        server = serve(accepts("a"))
        provider = Provider("a", "b")
        feed = HTTPFeed(URL, auth=provider)
        await fetch(feed)
        server.answers = [accepts("b")]
        assert ids(await fetch(feed)) == ["1"]
        assert ids(await fetch(feed)) == ["1"]
        assert (provider.asked, len(server.requests)) == (2, 4)

    async def test_a_fetch_calls_a_token_callable_again_only_once_after_401(self, serve):
        server = serve(httpx.Response(401))
        provider = Provider("a", "b", "c", "d")
        feed = HTTPFeed(URL, auth=provider)
        await refused(feed, FeedRefused)
        assert (provider.asked, len(server.requests)) == (2, 2)
        await refused(feed, FeedRefused)
        assert (provider.asked, len(server.requests)) == (3, 4)

    async def test_a_fixed_token_is_not_sent_again_after_401(self, serve):
        server = serve(httpx.Response(401))
        await refused(HTTPFeed(URL, auth="token"), FeedRefused)
        assert len(server.requests) == 1

    async def test_an_error_of_a_token_callable_is_a_feed_error(self, serve):
        server = serve(batch("1"))
        feed = HTTPFeed(URL, auth=Provider(RuntimeError(SECRET), "token"))
        error = await refused(feed)
        assert "failed: RuntimeError" in str(error)
        assert server.requests == []
        assert ids(await fetch(feed)) == ["1"]

    @pytest.mark.parametrize("token", [f"{SECRET}\n", f"{SECRET} x", "", f"{SECRET}é"])
    async def test_a_token_that_a_header_cannot_carry_is_refused_and_not_shown(self, serve, token):
        server = serve(batch())
        await refused(HTTPFeed(URL, auth=Provider(token)))
        with pytest.raises(ValueError, match="token given by auth=") as wrong:
            HTTPFeed(URL, auth=token)
        assert SECRET not in str(wrong.value)
        assert server.requests == []

    async def test_a_token_callable_that_returns_a_wrong_type_is_a_feed_error(self, serve):
        serve(batch())
        error = await refused(HTTPFeed(URL, auth=Provider(5)))
        assert "returned an invalid value: a token must be a str, got int" in str(error)

    async def test_an_httpx_auth_may_send_a_second_request(self, serve):
        challenge = 'Digest realm="shop", nonce="n", qop="auth", algorithm=SHA-256'
        server = serve(httpx.Response(401, headers={"www-authenticate": challenge}), batch("1"))
        assert ids(await fetch(HTTPFeed(f"{URL}?key=a", auth=httpx.DigestAuth("key", "secret")), "7")) == ["1"]
        assert 'uri="/orders?key=a&lastEventId=7"' in server.last.headers["authorization"]

    async def test_an_httpx_auth_sees_the_url_of_the_request_that_it_signs(self, serve):
        class Signature(httpx.Auth):
            def auth_flow(self, request):
                response = yield request
                if response.status_code == 401:
                    request.headers["x-signature"] = str(request.url)
                    yield request

        server = serve(httpx.Response(401), batch("1"))
        await fetch(HTTPFeed(f"{URL}?key=a", auth=Signature()))
        assert server.last.headers["x-signature"] == f"{URL}?key=a"

    async def test_credentials_of_the_users_client_are_used_unless_auth_is_given(self, serve):
        server = serve(batch())
        async with httpx.AsyncClient(auth=("key", "secret")) as client:
            await fetch(HTTPFeed(URL, client=client))
            assert server.last.headers["authorization"] == "Basic a2V5OnNlY3JldA=="
            await fetch(HTTPFeed(URL, client=client, auth="token"))
            assert server.last.headers["authorization"] == "Bearer token"

    async def test_credentials_do_not_appear_in_errors_logs_or_repr(self, serve, caplog):
        caplog.set_level(logging.DEBUG)
        server = serve(httpx.Response(404))
        url = f"https://me:{SECRET}@shop.example/orders?key={SECRET}"
        feed = HTTPFeed(url, headers={"X-Key": SECRET})
        assert repr(feed) == "HTTPFeed('https://shop.example/orders?key=…')"
        assert SECRET not in feed.identity
        await refused(feed, FeedRefused, cursor=SECRET)
        assert server.last.url.params["key"] == SECRET
        assert "shop.example" in caplog.text  # httpx logs at INFO
        assert SECRET not in caplog.text


class TestTheClient:
    async def test_the_client_is_opened_when_needed_and_again_after_a_close(self, serve):
        serve(batch("1"))
        feed = HTTPFeed(URL)
        await feed.aclose()
        assert ids(await fetch(feed)) == ["1"]
        await feed.aclose()
        assert ids(await fetch(feed)) == ["1"]

    async def test_the_client_keeps_no_cookies(self, serve):
        server = serve(batch("1", headers={"set-cookie": "a=b; Path=/"}))
        feed = HTTPFeed(URL)
        await feed.fetch(FetchRequest())
        await fetch(feed)
        assert "cookie" not in server.last.headers

    async def test_a_client_of_the_user_is_used_and_not_closed(self):
        server = Server(batch("1"))
        async with httpx.AsyncClient(transport=httpx.MockTransport(server), headers={"x-tenant": "a"}) as client:
            assert ids(await fetch(HTTPFeed(URL, client=client))) == ["1"]
            assert server.last.headers["x-tenant"] == "a"
            assert server.last.headers["accept-encoding"] == "gzip"
            assert not client.is_closed

    @pytest.mark.parametrize(("limit", "waits"), [(5.0, 25.0), (None, None)])
    async def test_a_client_of_the_user_keeps_its_timeouts_and_the_wait_is_added(self, limit, waits):
        server = Server(batch("1"))
        timeout = httpx.Timeout(3, read=limit)
        async with httpx.AsyncClient(transport=httpx.MockTransport(server), timeout=timeout) as client:
            await fetch(HTTPFeed(URL, client=client, max_wait=60), wait=20)
        assert server.last.extensions["timeout"] == {"connect": 3, "read": waits, "write": 3, "pool": 3}

    async def test_the_default_client_has_timeouts_and_the_wait_is_added(self, serve):
        server = serve(batch("1"))
        await fetch(HTTPFeed(URL, timeout=10, max_wait=60), wait=20)
        assert server.last.extensions["timeout"] == {"connect": 10, "read": 30, "write": 10, "pool": 5}

    async def test_the_client_is_replaced_after_a_pool_timeout(self, serve):
        # httpcore #1093: after some cancellations a pool never returns a connection again.
        serve(httpx.PoolTimeout("dead"), batch("1"))
        feed = HTTPFeed(URL)
        with pytest.raises(FeedError, match="PoolTimeout"):
            await feed.fetch(FetchRequest())
        assert feed._http_client._own_client is None
        assert ids(await fetch(feed)) == ["1"]

    async def test_the_client_is_kept_after_a_read_error(self, serve):
        serve(httpx.ReadError("reset"), batch("1"))
        feed = HTTPFeed(URL)
        with pytest.raises(FeedError, match="ReadError 'reset'"):
            await feed.fetch(FetchRequest())
        assert feed._http_client._own_client is not None
        await feed.aclose()

    @pytest.mark.parametrize(
        "error",
        [
            httpx.ConnectError("All connection attempts failed"),
            httpx.RemoteProtocolError("illegal header line: b'\x1b[2J'" + "x" * 5000),
            httpx.UnsupportedProtocol("odd"),
            OSError(104, "Connection reset by peer"),
        ],
    )
    async def test_an_error_of_the_client_is_a_feed_error(self, serve, error):
        serve(error)
        failed = await refused(HTTPFeed(URL))
        assert str(failed).startswith(f"{URL} could not be read: {type(error).__name__} ")
        assert failed.__cause__ is error

    async def test_a_header_that_the_client_refuses_is_not_shown_in_the_error(self, serve):
        serve(httpx.LocalProtocolError(f"Illegal header value b'{SECRET}'"))
        failed = await refused(HTTPFeed(URL))
        assert failed.__cause__ is None
        assert failed.__suppress_context__

    @pytest.mark.parametrize("cursor", ["a" * 2000, "a" * 70_000])
    async def test_a_url_that_is_too_long_is_a_feed_error(self, cursor):
        failed = await refused(HTTPFeed(URL + "a" * 64_000), cursor=cursor)
        assert "InvalidURL" in str(failed)

    async def test_errors_of_a_client_of_another_module_are_feed_errors(self):
        other = types.ModuleType("httpx_successor")

        class HTTPError(Exception):
            pass

        class PoolTimeout(HTTPError):
            pass

        class Client(httpx.AsyncClient):
            async def send(self, request, **kwargs):
                raise PoolTimeout(SECRET[:3])

        Client.__module__ = "httpx_successor._client"
        other.HTTPError, other.PoolTimeout = HTTPError, PoolTimeout
        other.InvalidURL = other.LocalProtocolError = type("Other", (Exception,), {})
        other.ReadTimeout = other.RemoteProtocolError = other.LocalProtocolError
        sys.modules["httpx_successor"] = other
        try:
            async with Client() as client:
                await refused(HTTPFeed(URL, client=client))
                assert not client.is_closed
        finally:
            del sys.modules["httpx_successor"]

    async def test_the_client_may_be_a_subclass_or_a_lookalike(self):
        class Subclass(httpx.AsyncClient):
            pass

        class Lookalike:
            def __init__(self, client):
                for name in ("aclose", "build_request", "send", "timeout"):
                    setattr(self, name, getattr(client, name))

        Subclass.__module__ = "not_imported.clients"
        async with Subclass(transport=httpx.MockTransport(Server(httpx.ReadError("reset")))) as client:
            await refused(HTTPFeed(URL, client=client))
            await refused(HTTPFeed(URL, client=Lookalike(client)))


class Chunks(httpx.AsyncByteStream):
    """A body in pieces, as from a socket."""

    def __init__(self, *chunks, pause=0.0):
        self.chunks = chunks
        self.pause = pause
        self.sent = 0
        self.closed = False

    async def aclose(self):
        await (
            anyio.lowlevel.checkpoint()
        )  # a cancelled task would stop here, and the pool would lose the connection
        self.closed = True

    async def __aiter__(self):
        for chunk in self.chunks:
            await anyio.sleep(self.pause)
            self.sent += 1
            yield chunk


def body(*chunks, encoding=None, status=200, pause=0.0):
    headers = {"content-type": "application/json"} | ({"content-encoding": encoding} if encoding else {})
    return httpx.Response(status, stream=Chunks(*chunks, pause=pause), headers=headers)


def bomb(mebibytes):
    """Return a gzip file of spaces only, packed to a thousandth."""
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    space = b" " * 1024 * 1024
    return b"".join([packer.compress(space) for _ in range(mebibytes)] + [packer.flush()])


# The garbage collector closes an httpx generator that was left early, and trio warns about that.
abandons = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")


class TestTheBody:
    PAGE = b'[{"id":"1"}]'

    async def test_a_body_may_arrive_in_pieces(self, serve):
        serve(body(*(bytes([byte]) for byte in self.PAGE)))
        assert ids(await fetch(HTTPFeed(URL))) == ["1"]

    @pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP "])
    async def test_a_gzip_body_is_decompressed(self, serve, encoding):
        serve(body(*(bytes([byte]) for byte in gzip.compress(self.PAGE)), encoding=encoding))
        assert ids(await fetch(HTTPFeed(URL))) == ["1"]

    async def test_padding_after_a_gzip_body_is_ignored(self, serve):
        serve(body(gzip.compress(self.PAGE) + b"\0" * 10, b"\0" * 10, b"\r\n", encoding="gzip"))
        assert ids(await fetch(HTTPFeed(URL))) == ["1"]

    @pytest.mark.parametrize("pieces", [1, 1000])
    @pytest.mark.parametrize("behind", [gzip.compress(b"[]"), b"x"], ids=["more of it", "no gzip"])
    async def test_data_after_the_end_of_a_gzip_body_is_a_feed_error(self, serve, behind, pieces):
        """The data may be a second file, which would be lost."""
        sent = gzip.compress(self.PAGE) + behind
        serve(body(*([sent] if pieces == 1 else (bytes([byte]) for byte in sent)), encoding="gzip"))
        assert "gzip body with extra data after its end" in str(await refused(HTTPFeed(URL)))

    @pytest.mark.parametrize("wbits", [zlib.MAX_WBITS, -zlib.MAX_WBITS, 9, -9])
    @pytest.mark.parametrize("pieces", [1, 1000])
    async def test_a_deflate_body_is_read_with_and_without_a_zlib_header(self, serve, wbits, pieces):
        """The standard requires a zlib header, and many servers omit it."""
        packer = zlib.compressobj(wbits=wbits)
        sent = packer.compress(self.PAGE) + packer.flush()
        chunks = [sent] if pieces == 1 else [bytes([byte]) for byte in sent]
        serve(body(*chunks, encoding="deflate"))
        assert ids(await fetch(HTTPFeed(URL))) == ["1"]
        serve(body(sent[:-3], encoding="deflate"))
        assert "deflate body that is cut off" in str(await refused(HTTPFeed(URL)))

    async def test_a_deflate_body_that_is_cut_after_one_byte_is_a_feed_error(self, serve):
        serve(body(b"\x78", encoding="deflate"))
        assert "deflate body that is cut off" in str(await refused(HTTPFeed(URL)))

    async def test_content_encoding_identity_is_accepted(self, serve):
        serve(body(self.PAGE, encoding="identity"))
        assert ids(await fetch(HTTPFeed(URL))) == ["1"]

    async def test_304_with_content_encoding_gzip_needs_no_body(self, serve):
        serve(batch(headers={"etag": '"e"'}), httpx.Response(304, headers={"content-encoding": "gzip"}))
        feed = HTTPFeed(URL)
        await feed.fetch(FetchRequest())
        assert ids(await fetch(feed)) == []

    @pytest.mark.parametrize(
        "encoding", ["br", "zstd", "gzip, gzip", "deflate, gzip", "identity, gzip", "x" * 5000]
    )
    async def test_an_unsupported_content_encoding_is_a_feed_error(self, serve, encoding):
        serve(body(b"x", encoding=encoding))
        assert f"Content-Encoding '{encoding[:100]}" in str(await refused(HTTPFeed(URL)))

    async def test_a_truncated_gzip_body_is_a_feed_error(self, serve):
        # The whole page is there; only its checksum is missing.
        serve(body(gzip.compress(self.PAGE)[:-4], encoding="gzip"))
        assert "is cut off" in str(await refused(HTTPFeed(URL)))

    @abandons
    @pytest.mark.parametrize("damaged", [b"[]", gzip.compress(b"[]")[:-8] + b"\0" * 8], ids=["no gzip", "no sum"])
    async def test_a_damaged_gzip_body_is_a_feed_error(self, serve, damaged):
        serve(body(damaged, encoding="gzip"))
        assert "not valid gzip" in str(await refused(HTTPFeed(URL)))

    @abandons
    @pytest.mark.parametrize("damaged", [b"[]", b"\x78\x9c[]", zlib.compress(PAGE)[:-4] + b"\0" * 4, b"\xff" * 9])
    async def test_a_damaged_deflate_body_is_a_feed_error(self, serve, damaged):
        serve(body(damaged, encoding="deflate"))
        assert "deflate" in str(await refused(HTTPFeed(URL)))

    async def test_a_body_may_be_exactly_as_large_as_max_body(self, serve):
        serve(body(self.PAGE))
        assert ids(await fetch(HTTPFeed(URL, max_body=len(self.PAGE)))) == ["1"]
        serve(body(gzip.compress(self.PAGE + b" " * 1000), encoding="gzip"))
        assert ids(await fetch(HTTPFeed(URL, max_body=len(self.PAGE) + 1000))) == ["1"]

    @pytest.mark.parametrize(("size", "own_thread"), [(1_000_000, False), (2_000_000, True)])
    async def test_a_large_body_is_parsed_in_a_worker_thread(self, serve, monkeypatch, size, own_thread):
        """A hostile body takes ten seconds to parse."""
        threads = []
        monkeypatch.setattr(http_feed, "read_batch", lambda *a, **k: threads.append(threading.get_ident()) or [])
        serve(body(b" " * size))
        await fetch(HTTPFeed(URL))
        assert (threads != [threading.get_ident()]) == own_thread

    async def test_a_body_may_already_be_read_and_decompressed_by_the_transport(self):
        # httpx.MockTransport and caches return responses that are already read and unpacked.
        packed = gzip.compress(self.PAGE)
        headers = {"content-encoding": "gzip", "content-type": "application/json"}
        server = Server(httpx.Response(200, content=packed, headers=headers))
        async with httpx.AsyncClient(transport=httpx.MockTransport(server)) as client:
            assert ids(await fetch(HTTPFeed(URL, client=client, max_body=len(self.PAGE)))) == ["1"]
            await refused(HTTPFeed(URL, client=client, max_body=len(self.PAGE) - 1))

    @abandons
    async def test_a_body_is_not_read_far_beyond_max_body(self, serve):
        answer = body(*[b" " * 100] * 1000)
        serve(answer)
        assert "more than 1000 bytes" in str(await refused(HTTPFeed(URL, max_body=1000)))
        assert answer.stream.sent == 11

    @abandons
    async def test_a_gzip_body_is_not_decompressed_beyond_max_body(self, serve):
        serve(body(gzip.compress(self.PAGE + b" " * 1000), encoding="gzip"))
        assert "more than 1011 bytes" in str(await refused(HTTPFeed(URL, max_body=len(self.PAGE) + 999)))

    @abandons
    async def test_the_compressed_size_of_a_body_is_limited_by_max_body(self, serve):
        # Endless empty gzip blocks, which unpack to nothing.
        packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
        start = packer.compress(b"[") + packer.flush(zlib.Z_FULL_FLUSH)
        answer = body(start, *[b"\x00\x00\x00\xff\xff" * 20] * 1000, encoding="gzip")
        serve(answer)
        assert "more than 1000 bytes" in str(await refused(HTTPFeed(URL, max_body=1000)))
        assert answer.stream.sent == 11

    @abandons
    @pytest.mark.parametrize("status", [200, 401])
    @pytest.mark.parametrize("auth", [None, Provider("a"), httpx.DigestAuth("key", "secret")])
    async def test_a_gzip_bomb_does_not_fill_the_memory(self, serve, status, auth):
        packed = bomb(form(16, 64))
        assert len(packed) < 100_000
        challenge = {"www-authenticate": 'Digest realm="shop", nonce="n", qop="auth"', "content-encoding": "gzip"}
        serve(*[httpx.Response(status, stream=Chunks(packed), headers=challenge) for _ in range(2)])
        feed = HTTPFeed(URL, auth=auth, max_body=1024 * 1024)
        tracemalloc.start()
        try:
            with pytest.raises(FeedError):
                await fetch(feed)
            assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
        finally:
            tracemalloc.stop()

    async def test_a_body_whose_content_length_exceeds_max_body_is_not_read(self, serve):
        answer = httpx.Response(200, stream=Chunks(b" "), headers={"content-length": "1001"})
        serve(answer)
        assert "more than 1000 bytes" in str(await refused(HTTPFeed(URL, max_body=1000)))
        assert answer.stream.sent == 0

    @pytest.mark.parametrize("length", ["1" + "0" * 5000, "1000", "-5", "x", "5, 5"])
    async def test_a_wrong_or_invalid_content_length_fails_only_if_it_exceeds_max_body(self, serve, length):
        serve(httpx.Response(200, stream=Chunks(self.PAGE), headers={"content-length": length}))
        feed = HTTPFeed(URL, max_body=1000)
        if len(length) > 20:
            await refused(feed)
        else:
            assert ids(await fetch(feed)) == ["1"]

    async def test_the_content_length_of_304_is_ignored(self, serve):
        """RFC 9110 §8.6: it is the length of the 200 response."""
        serve(batch(headers={"etag": '"e"'}), httpx.Response(304, headers={"content-length": "2000"}))
        feed = HTTPFeed(URL, max_body=1000)
        await feed.fetch(FetchRequest())
        assert ids(await fetch(feed)) == []

    @abandons
    @pytest.mark.parametrize(
        ("chunk", "pause", "limit", "seconds"),
        [
            (b" ", 1.0, 30, 10),
            (b" " * 100, 1.0, 30, 10),
            (b" " * 120, 1.0, 30, 30),  # 1,080 bytes in nine seconds
            (b" " * 10_000, 9.0, 30, 30),
            (b" " * 10_000, 11.0, 30, 10),
            (b" ", 1.0, 5, 5),
        ],
    )
    async def test_a_body_that_arrives_too_slowly_fails_the_fetch_in_limited_time(
        self, serve, chunk, pause, limit, seconds
    ):
        serve(body(*[chunk] * 100_000, pause=pause))
        started = anyio.current_time()
        failed = str(await refused(HTTPFeed(URL, timeout=limit)))
        assert anyio.current_time() - started == pytest.approx(seconds)
        if seconds == limit:
            assert f"did not send a whole response within {limit} seconds" in failed
        else:
            assert "sent less than 1024 bytes of its body in 10 seconds" in failed

    async def test_a_body_that_never_arrives_is_a_feed_error(self, serve):
        serve(body(b"[]", pause=86400))
        await refused(HTTPFeed(URL, timeout=30))

    async def test_the_time_limit_of_a_body_is_extended_by_the_requested_wait(self, serve):
        serve(body(self.PAGE, pause=65))
        assert ids(await fetch(HTTPFeed(URL, timeout=30, max_wait=60), wait=60)) == ["1"]
        serve(body(self.PAGE, pause=95))
        assert "of its body in 10 seconds" in str(await refused(HTTPFeed(URL, timeout=30, max_wait=60), wait=60))

    async def test_newlines_keep_a_held_response_alive(self, serve):
        """CouchDB sends newlines to keep a connection alive."""
        serve(body(*[b"\n"] * 10, self.PAGE, pause=6))
        assert ids(await fetch(HTTPFeed(URL, timeout=30, max_wait=60), wait=60)) == ["1"]

    async def test_a_slow_body_is_read_after_an_expired_token_was_replaced(self, serve):
        server = serve(httpx.Response(401), body(self.PAGE, pause=9))
        assert ids(await fetch(HTTPFeed(URL, auth=Provider("a", "b")))) == ["1"]
        assert len(server.requests) == 2

    async def test_the_body_of_an_error_response_is_not_read(self, serve):
        answer = body(b"x", status=500)
        serve(answer)
        await refused(HTTPFeed(URL))
        assert answer.stream.sent == 0

    async def test_a_cancelled_fetch_closes_the_response_body(self, serve):
        answer = body(self.PAGE, pause=10)
        serve(answer)
        feed = HTTPFeed(URL)
        with anyio.move_on_after(5) as scope:
            await feed.fetch(FetchRequest())
        assert scope.cancelled_caught
        assert answer.stream.closed
        await feed.aclose()


class TestWrongArguments:
    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"url": b"https://h/"}, TypeError, "got bytes"),
            ({"url": httpx.URL(URL)}, TypeError, "got URL"),
            ({"url": "/orders"}, ValueError, "must start with http"),
            ({"url": "ftp://h/"}, ValueError, "must start with http"),
            ({"url": "https:///orders"}, ValueError, "must start with http"),
            ({"url": f"https://me:{SECRET}/x@h/"}, ValueError, "cannot be parsed"),
            ({"url": "https://h/\n"}, ValueError, "cannot be parsed"),
            (
                {"url": f"{URL}?lastEventId=5&timeout=7"},
                ValueError,
                "remove lastEventId and timeout from the query of url",
            ),
            ({"auth": 5}, TypeError, "returns a token, got int"),
            ({"auth": (SECRET,)}, TypeError, "returns a token, got tuple"),
            ({"auth": (b"a", b"b")}, TypeError, "returns a token, got tuple"),
            ({"auth": "a", "headers": {"AUTHORIZATION": "b"}}, ValueError, "only once"),
            ({"auth": "a", "url": "https://a:b@h/"}, ValueError, "only once"),
            ({"headers": {"x": 5}}, TypeError, "got int for 'x'"),
            ({"headers": {5: "x"}}, TypeError, "got str for '5'"),
            ({"headers": {"x": f"{SECRET}\r\nHost: y"}}, ValueError, "header 'x' has characters"),
            ({"headers": {"x": f"{SECRET}é"}}, ValueError, "header 'x' has characters"),
            ({"headers": {"x y": SECRET}}, ValueError, "header 'x y' has characters"),
            ({"headers": {"": SECRET}}, ValueError, "header '' has characters"),
            ({"max_wait": 0}, ValueError, "max_wait must be finite and above 0, got 0"),
            ({"max_wait": "5"}, TypeError, "max_wait must be a number or None, got '5'"),
            ({"max_wait": True}, TypeError, "max_wait must be a number or None, got True"),
            ({"timeout": -1}, ValueError, "timeout must be finite and above 0, got -1"),
            ({"timeout": float("nan")}, ValueError, "timeout must be finite and above 0, got nan"),
            ({"timeout": float("inf")}, ValueError, "timeout must be finite and above 0, got inf"),
            ({"timeout": None}, TypeError, "timeout must be a number, got None"),
            ({"max_body": 0}, ValueError, "max_body must be at least 1, got 0"),
            ({"max_body": 1e6}, TypeError, "max_body must be a whole number, got 1000000.0"),
            ({"max_body": True}, TypeError, "max_body must be a whole number, got True"),
            ({"client": httpx}, TypeError, "client must be an httpx.AsyncClient or compatible, got module"),
        ],
    )
    def test_wrong_arguments_are_refused_at_construction_without_showing_secrets(self, arguments, error, text):
        with pytest.raises(error) as wrong:
            HTTPFeed(arguments.pop("url", URL), **arguments)
        assert text in str(wrong.value)
        assert SECRET not in str(wrong.value)

    def test_a_blocking_client_is_a_type_error(self):
        with (
            httpx.Client() as client,
            pytest.raises(TypeError, match=r"client must be an httpx\.AsyncClient"),
        ):
            HTTPFeed(URL, client=client)


def test_the_feeds_package_exports_cloud_event_and_http_feed():
    assert feeds.CloudEvent is CloudEvent
    assert feeds.HTTPFeed is HTTPFeed


def test_the_identity_of_a_feed_is_its_url_without_credentials():
    assert HTTPFeed(URL).identity == URL
    assert HTTPFeed("https://a:b@shop.example/orders").identity == URL
    assert HTTPFeed(f"{URL}?tenant=a").identity != HTTPFeed(f"{URL}?tenant=b").identity


def test_an_http_feed_satisfies_the_feed_protocol():
    feed: _types.Feed = HTTPFeed(URL)  # checked by mypy
    assert feed


async def test_clients_share_one_tls_context():
    contexts = set()
    for _ in range(2):
        async with open_client(httpx.Timeout(30)) as client:
            contexts.add(client._direct._connections._ssl_context)
    assert len(contexts) == 1
