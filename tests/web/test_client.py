"""Requests of `Client`: conditions, links, redirects to other origins. Without sockets."""

import gzip

import anyio
import httpx
import pytest
import respx

from push_to_poll_client._exceptions import FeedError, FeedRefused
from push_to_poll_client._http.caching import Validators
from push_to_poll_client._http.client import Client
from push_to_poll_client._version import __version__
from tests.feeds.test_http_feed import SECRET, URL, Chunks, Server

pytestmark = pytest.mark.anyio

CDN = "https://cdn.example"


class Broken(httpx.AsyncByteStream):
    async def __aiter__(self):
        yield b"wh"
        raise httpx.ReadError("reset")


@pytest.fixture
def serve():
    """Answer every request of every client, for any host."""
    with respx.mock(assert_all_called=False) as router:

        def start(*answers):
            server = Server(*answers)
            router.route().mock(side_effect=server)
            return server

        yield start


def origin(url=URL, **given):
    arguments = {"auth": None, "headers": None, "timeout": 30.0, "max_body": 10_000, "client": None}
    return Client(url, **{**arguments, **given})


async def ask(asked, url=URL, **given):
    """Return one response of an origin that is closed afterwards."""
    try:
        return await asked.send_request(url, **{"headers": {}, **given})
    finally:
        await asked.aclose()


async def refused(asked, url=URL, kind=FeedError, **given):
    with pytest.raises(kind) as failed:
        asked.check_status(await ask(asked, url, **given))
    assert type(failed.value) is kind
    assert SECRET not in str(failed.value)
    return str(failed.value)


class TestConditions:
    async def test_conditions_are_sent_and_304_is_accepted(self, serve):
        server = serve(httpx.Response(304))
        asked = origin()
        answer = asked.check_status(await ask(asked, known=Validators('"a"')))
        assert server.last.headers["if-none-match"] == '"a"'
        assert answer.known == answer.validators == Validators('"a"')

    @pytest.mark.parametrize("known", [None, Validators(), Validators("*")])
    async def test_304_for_a_request_without_conditions_is_a_feed_error(self, serve, known):
        serve(httpx.Response(304))
        assert f"{URL} answered 304 Not Modified to a request without an ETag or a date" in await refused(
            origin(), known=known
        )

    async def test_conditions_are_not_sent_with_post(self, serve):
        """With POST a condition decides whether the action is done (RFC 9110 §13.1.2)."""
        server = serve(httpx.Response(304))
        await refused(origin(), known=Validators('"a"'), method="POST", content=b"{}")
        assert "if-none-match" not in server.last.headers

    async def test_conditions_are_not_sent_to_the_target_of_a_redirect(self, serve):
        """Another resource may have the same date, or the same ETag."""
        moved = httpx.Response(302, headers={"location": "/v2"})
        server = serve(moved, httpx.Response(200, headers={"etag": '"a"'}))
        answer = await ask(origin(), known=Validators('"a"'))
        assert server.requests[0].headers["if-none-match"] == '"a"'
        assert "if-none-match" not in server.last.headers
        assert (answer.known, answer.validators, answer.redirected) == (None, None, True)
        assert answer.url == "https://shop.example/v2"


class TestWhoAsks:
    OURS = f"push-to-poll-client/{__version__} python-httpx/{httpx.__version__}"

    async def test_the_user_agent_names_this_library_and_httpx(self, serve):
        server = serve(httpx.Response(200))
        await ask(origin())
        await ask(origin(trusted_origins=[CDN]), f"{CDN}/p")
        async with httpx.AsyncClient() as client:
            await ask(origin(client=client))
        assert [request.headers["user-agent"] for request in server.requests] == [self.OURS] * 3

    async def test_a_user_agent_of_the_user_is_sent_unchanged(self, serve):
        server = serve(httpx.Response(200))
        await ask(origin(headers={"User-Agent": "mine/1"}))
        async with httpx.AsyncClient(headers={"User-Agent": "mine/1"}) as client:
            await ask(origin(client=client))
        assert [request.headers["user-agent"] for request in server.requests] == ["mine/1"] * 2

    async def test_no_user_agent_is_sent_if_the_users_client_has_none(self, serve):
        server = serve(httpx.Response(200))
        async with httpx.AsyncClient() as client:
            del client.headers["user-agent"]
            await ask(origin(client=client))
        assert "user-agent" not in server.last.headers


class TestAPool:
    async def test_the_client_is_dropped_after_a_pool_timeout(self, serve):
        """A workaround for httpcore #1093."""
        serve(httpx.PoolTimeout("dead"), httpx.Response(200))
        asked = origin()
        with pytest.raises(FeedError, match="PoolTimeout 'dead'; retrying later"):
            await asked.send_request(URL, headers={})
        assert asked._own_client is None
        assert (await ask(asked)).status == 200

    @pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError])
    async def test_the_client_is_kept_after_connection_errors(self, serve, error):
        """A failed connection leaves nothing behind; a new client would only cost another handshake."""
        serve(*[error("no")] * 5, httpx.Response(200))
        asked = origin()
        clients = set()
        for _ in range(5):
            with pytest.raises(FeedError):
                await asked.send_request(URL, headers={})
            clients.add(id(asked._own_client))
        assert (await ask(asked)).status == 200
        assert len(clients) == 1

    async def test_a_client_that_is_closed_while_a_token_is_fetched_is_opened_anew(self, serve):
        """Another request may close the client, after its own pool timeout."""
        serve(httpx.Response(200), httpx.Response(401), httpx.Response(200))
        tokens = iter("ab")

        async def token():
            await asked.aclose()
            return next(tokens)

        asked = origin(auth=token)
        for _ in range(2):
            assert (await asked.send_request(URL, headers={})).status == 200
        await asked.aclose()

    async def test_a_client_of_the_user_is_not_closed_after_a_pool_timeout(self, serve):
        serve(httpx.PoolTimeout("dead"))
        async with httpx.AsyncClient() as client:
            text = await refused(origin(client=client))
            assert "the client given by client= has no free connection (PoolTimeout)" in text
            assert not client.is_closed


@pytest.mark.parametrize(("wait", "said"), [(0, None), (0.2, "wait=1"), (29.6, "wait=30")])
async def test_the_wait_is_sent_in_the_prefer_header(serve, wait, said):
    server = serve(httpx.Response(200))
    await ask(origin(), wait=wait)
    assert server.requests[0].headers.get("prefer") == said


async def test_a_prefer_header_of_the_feed_is_not_overridden(serve):
    server = serve(httpx.Response(200))
    await ask(origin(), wait=30, headers={"prefer": "respond-async, wait=9"})
    assert server.requests[0].headers.get_list("prefer") == ["respond-async, wait=9"]


class TestWhatAServerSaysToAnError:
    @pytest.mark.parametrize(
        ("sent", "said"),
        [
            ({"content": b"why"}, b"why"),
            ({"stream": Chunks(gzip.compress(b"why")), "headers": {"content-encoding": "gzip"}}, b"why"),
            ({"content": b"w" * 101}, b""),
            ({"stream": Chunks(b"w" * 60, b"w" * 60)}, b""),
            ({"stream": Chunks(b"why"), "headers": {"content-encoding": "br"}}, b""),
            ({"stream": Chunks(b"why"), "headers": {"content-encoding": "gzip"}}, b""),
            ({"stream": Chunks(b"why", pause=6)}, b""),
            ({"stream": Broken()}, b""),
        ],
    )
    async def test_a_small_error_body_is_read_and_a_bad_one_is_ignored(self, serve, sent, said):
        headers = {"retry-after": "7", **sent.get("headers", {})}
        serve(httpx.Response(429, **{**sent, "headers": headers}))
        answer = await ask(origin(), max_error_body=100)
        assert (answer.status, answer.body, answer.retry_after) == (429, said, 7)

    async def test_an_error_body_is_not_read_by_default(self, serve):
        serve(httpx.Response(429, content=b"why"))
        assert (await ask(origin())).body == b""

    async def test_a_401_body_does_not_use_up_the_time_of_the_second_request(self, serve):
        """The token has expired, the 401 response has a body, and the new token takes some time."""
        serve(httpx.Response(401, content=b"no"), httpx.Response(200, content=b"[]"))
        waits = [0, 12]

        async def token():
            await anyio.sleep(waits.pop(0))
            return "a"

        assert (await ask(origin(auth=token), max_error_body=100)).body == b"[]"


class TestLinks:
    async def test_links_within_the_origin_are_requested_with_credentials(self, serve):
        server = serve(httpx.Response(200))
        for url in ("https://shop.example/x?page=2#frag", "HTTPS://SHOP.example:443/x?page=2"):
            answer = await ask(origin(auth=SECRET), url)
            assert (str(server.last.url), answer.url) == ("https://shop.example/x?page=2",) * 2
            assert server.last.headers["authorization"] == f"Bearer {SECRET}"

    @pytest.mark.parametrize("url", ["https://shop.example", "https://shop.example?a=b"])
    async def test_a_url_without_a_path_is_requested_with_credentials(self, serve, url):
        server = serve(httpx.Response(200))
        asked = origin(url, auth=SECRET)
        await ask(asked, asked.build_url({}))
        assert server.last.headers["authorization"] == f"Bearer {SECRET}"

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            (f"https://evil.example/{SECRET}?key={SECRET}", "https://evil.example/"),
            ("http://shop.example/orders", "http://shop.example/"),
            ("https://shop.example:8443/orders", "https://shop.example:8443/"),
            ("https://shop.example.evil.example/", "https://shop.example.evil.example/"),
            (f"https://{SECRET}:{SECRET}@evil.example/", "https://evil.example/"),
            ("http://xn--zz/", "http://xn--zz/"),
            ("//evil.example/", "(not a URL)"),
            ("/orders", "(not a URL)"),
            ("file:///etc/passwd", "(not a URL)"),
            ("javascript:alert(1)", "(not a URL)"),
        ],
    )
    async def test_links_to_other_origins_are_refused(self, serve, url, shown):
        server = serve(httpx.Response(200))
        text = await refused(origin(auth=SECRET, trusted_origins=[CDN]), url)
        assert f"{URL} links to another origin, {shown}, which" in text
        assert server.requests == []

    @pytest.mark.parametrize("url", [f"https://h:{SECRET}/", f"https://xn--ü/{SECRET}", "https://shop.evil\n/"])
    async def test_a_link_to_an_invalid_url_is_a_feed_error(self, serve, url):
        serve(httpx.Response(200))
        assert f"{URL} links to an invalid URL" in await refused(origin(), url)


class TestTrustedOrigins:
    @pytest.mark.parametrize(
        "url", [f"{CDN}/p", "https://CDN.example:443/p", f"https://{SECRET}:pw@cdn.example/p"]
    )
    async def test_a_trusted_origin_is_requested_without_credentials(self, serve, url):
        server = serve(httpx.Response(200))
        asked = origin(auth=SECRET, headers={"X-Key": SECRET, "accept": "a/b"}, trusted_origins=[CDN])
        answer = await ask(asked, url, headers={"accept": "c/d"})
        assert (str(server.last.url), answer.url) == (f"{CDN}/p",) * 2
        assert SECRET not in str(server.last.headers.raw)
        assert server.last.headers["accept"] == "c/d"
        assert server.last.headers["accept-encoding"] == "gzip"

    @pytest.mark.parametrize("auth", [None, httpx.BasicAuth("me", SECRET), httpx.DigestAuth("me", SECRET)])
    async def test_a_trusted_origin_gets_no_headers_cookies_or_params_of_the_client(self, auth):
        server = Server(httpx.Response(401, headers={"www-authenticate": 'Digest realm="r", nonce="n"'}))
        async with httpx.AsyncClient(
            transport=httpx.MockTransport(server),
            auth=("me", SECRET),
            headers={"X-Key": SECRET},
            cookies={"session": SECRET},
            params={"key": SECRET},
        ) as client:
            text = await refused(origin(client=client, auth=auth, trusted_origins=[CDN]), f"{CDN}/p", FeedRefused)
        assert f"{URL}, which led to {CDN}/p, answered 401 Unauthorized" in text
        (request,) = server.requests
        assert str(request.url) == f"{CDN}/p"
        assert set(request.headers) == {"host", "accept-encoding", "user-agent"}
        assert request.extensions["timeout"] == {"connect": 5, "read": 5, "write": 5, "pool": 5}

    async def test_the_last_16_tokens_of_a_function_are_known_beside_many_cookies(self):
        tokens = []

        async def token():
            tokens.append(f"t0k3n-{len(tokens):02}-{SECRET}")
            return tokens[-1]

        server = Server(httpx.Response(401))
        cookies = {f"cookie{number}": f"cookie-value-{number}" for number in range(100)}
        async with httpx.AsyncClient(transport=httpx.MockTransport(server)) as client:
            asked = origin(client=client, auth=token)
            for _ in range(20):
                await refused(asked, URL, FeedRefused)
            assert asked.secrets.mask(" ".join(tokens[-16:])) == " ".join(["***"] * 16)
            client.cookies.update(cookies)
            await refused(asked, URL, FeedRefused)
        assert "t0k3n" not in asked.secrets.mask(server.requests[-1].headers["authorization"])

    async def test_401_of_a_trusted_origin_does_not_request_a_token(self, serve):
        serve(httpx.Response(401))
        asked = []

        async def token():
            asked.append(1)
            return "a"

        await refused(origin(auth=token, trusted_origins=[CDN]), f"{CDN}/p", FeedRefused)
        assert asked == []

    async def test_a_redirect_through_a_trusted_origin_sends_credentials_only_to_the_feed(self, serve):
        server = serve(
            httpx.Response(302, headers={"location": f"{CDN}/p"}),
            httpx.Response(302, headers={"location": URL}),
            httpx.Response(200),
        )
        answer = await ask(origin(auth=SECRET, trusted_origins=[CDN]))
        assert [request.headers.get("authorization") for request in server.requests] == [
            f"Bearer {SECRET}",
            None,
            f"Bearer {SECRET}",
        ]
        assert answer.url == URL

    async def test_a_trusted_origin_may_not_redirect_to_an_untrusted_one(self, serve):
        server = serve(httpx.Response(302, headers={"location": "https://evil.example/"}))
        assert "redirects to another origin, https://evil" in await refused(
            origin(trusted_origins=[CDN]), f"{CDN}/p"
        )
        assert len(server.requests) == 1

    async def test_a_trusted_origin_never_gets_a_posted_body(self, serve):
        """Some vendors require their secret in the body."""
        server = serve(httpx.Response(307, headers={"location": f"{CDN}/p"}))
        posted = {"method": "POST", "content": SECRET.encode()}
        text = await refused(origin(trusted_origins=[CDN]), **posted)
        assert f"{CDN}/, which must not get the request body" in text
        await refused(origin(trusted_origins=[CDN]), f"{CDN}/p", **posted)
        assert len(server.requests) == 1

    @pytest.mark.parametrize(
        ("trusted", "error", "text"),
        [
            (CDN, TypeError, "trusted_origins must be a list of origins, got str"),
            (5, TypeError, "trusted_origins must be a list of origins, got int"),
            ([5], TypeError, "trusted_origins must contain only str, got int"),
            ([f"{CDN}/p"], ValueError, f"https://cdn.example, got {CDN}/p"),
            ([f"{CDN}?a={SECRET}"], ValueError, "must contain only origins"),
            ([f"{CDN}#a"], ValueError, "must contain only origins"),
            ([f"https://me:{SECRET}@cdn.example"], ValueError, "must contain only origins"),
            (["cdn.example"], ValueError, "must contain only origins"),
            (["ftp://cdn.example"], ValueError, "must contain only origins"),
            (["https://cdn.example:port"], ValueError, "must contain only origins"),
            (["*"], ValueError, "must contain only origins"),
        ],
    )
    def test_trusted_values_that_are_not_origins_are_refused(self, trusted, error, text):
        with pytest.raises(error) as wrong:
            origin(trusted_origins=trusted)
        assert text in str(wrong.value)
        assert SECRET not in str(wrong.value)

    def test_a_trusted_origin_may_end_in_a_slash(self):
        assert origin(trusted_origins={f"{CDN}/"})._urls._trusted == origin(trusted_origins=(CDN,))._urls._trusted
