"""One request of a channel: credentials, and limits of the response."""

import http.cookiejar
import ssl

import anyio
import httpx
import pytest

from push_to_poll_client._http.credentials import CredentialsFailed
from push_to_poll_client.listeners import ReconnectAction
from push_to_poll_client.listeners import _requests as sending
from push_to_poll_client.listeners._failures import http_failure_of
from push_to_poll_client.listeners._requests import ListenerClient, ListenerResponse, UnusableResponse
from tests.support.scripted import END, RESET, Script, client_of

pytestmark = pytest.mark.anyio

CANARY = "c4n4ry"
HOME = f"https://api.example/ask?key={CANARY}"
ELSEWHERE = "https://notify.example/wait"


def asker(*steps, url=HOME, client=None, **options):
    script = Script(*steps)
    return ListenerClient(url, client=client_of(script, **client or {}), **options), script


async def refused(asking, kind, **options):
    with pytest.raises(kind) as failed:
        await asking.send_request(**options)
    assert CANARY not in str(failed.value)
    return str(failed.value)


# Responses


async def test_an_answer_has_status_headers_body_and_redacted_url():
    asking, script = asker((201, {"X-Seen": "yes"}, [b'{"a":', b" 1}", END]))
    answer = await asking.send_request("POST", content=b"question", headers={"Content-Type": "text/plain"})
    assert (answer.status, answer.headers["x-seen"], answer.json()) == (201, "yes", {"a": 1})
    assert (script.requests[0].method, script.bodies) == ("POST", [b"question"])
    assert script.sent("content-type") == ["text/plain"]
    assert answer.url == "https://api.example/ask?key=…"
    assert script.open == 0


async def test_the_repr_of_an_answer_shows_neither_headers_nor_body():
    asking, _ = asker((200, {"Set-Cookie": CANARY}, [CANARY.encode(), END]))
    assert (
        repr(await asking.send_request()) == "ListenerResponse(200, 6 bytes, url='https://api.example/ask?key=…')"
    )


@pytest.mark.parametrize("body", [b"", b"<html>", b'"\xff"', b"[" * 100_000, b"9" * 5000])
async def test_a_body_that_is_not_json_is_an_unusable_answer(body):
    asking, _ = asker(body)
    answer = await asking.send_request()
    with pytest.raises(UnusableResponse, match="sent no valid JSON"):
        answer.json()


@pytest.mark.parametrize(("status", "expected"), [(200, ()), (204, ()), (409, (204, 409))])
async def test_expect_returns_the_answer_when_the_status_is_expected(status, expected):
    asking, _ = asker(status)
    answer = await asking.send_request()
    assert answer.expect(*expected) is answer


@pytest.mark.parametrize(("status", "expected"), [(302, ()), (404, ()), (200, (204,))])
async def test_expect_raises_an_http_status_error_for_another_status(status, expected):
    asking, _ = asker((status, {"Retry-After": "7"}, [END]))
    answer = await asking.send_request()
    with pytest.raises(httpx.HTTPStatusError) as failed:
        answer.expect(*expected)
    failure = http_failure_of(failed.value, wanted="a subscription")
    assert (failure.retry_after, failure.sentence.partition(";")[0]) == (
        7,
        f"the server answered HTTP {status} instead of a subscription",
    )


async def test_an_unusable_answer_is_retried_slowly():
    failure = http_failure_of(UnusableResponse("it answered x"), wanted="")
    assert (failure.action, failure.sentence) == (ReconnectAction.SLOW_RETRY, "it answered x")


# Limits


async def test_an_answer_above_max_body_is_unusable_and_reading_stops():
    asking, script = asker([b"x" * 60, b"y" * 41], max_body=100)
    assert (
        await refused(asking, UnusableResponse)
        == "https://api.example/ask?key=… sent a body of more than 100 bytes; raise max_body= to accept it"
    )
    assert script.open == 0


async def test_an_answer_of_exactly_max_body_is_read():
    asking, _ = asker([b"x" * 100, END], max_body=100)
    assert (await asking.send_request()).body == b"x" * 100


@pytest.mark.parametrize("encoding", ["br", "identity, br", "x" * 5000, "\x1b[31m"])
async def test_an_answer_in_an_unknown_encoding_is_unusable(encoding):
    asking, script = asker((200, {"Content-Encoding": encoding}, [b"\x1f\x8b", END]))
    said = await refused(asking, UnusableResponse)
    assert "which was not requested" in said
    assert said.isprintable()
    assert len(said) < 300
    assert script.sent("accept-encoding") == ["identity"]


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
async def test_an_answer_with_identity_content_encoding_is_read(encoding):
    asking, _ = asker((200, {"Content-Encoding": encoding}, [b"x", END]))
    assert (await asking.send_request()).body == b"x"


@pytest.mark.parametrize("step", [[b"x"], [b"x", *[5, b"x"] * 20, END], (60, 200)])
async def test_an_answer_that_is_not_complete_within_timeout_is_a_timeout_error(step):
    asking, script = asker(step, timeout=10)
    began = anyio.current_time()
    assert await refused(asking, TimeoutError) == "no complete response within 10 s"
    assert anyio.current_time() - began == pytest.approx(10)
    assert script.open == 0


async def test_wait_extends_the_timeout_of_an_answer():
    asking, _ = asker((35, 200), timeout=10)
    assert (await asking.send_request(wait=30)).status == 200
    assert await refused(asking, TimeoutError, wait=20) == "no complete response within 30 s"


@pytest.mark.parametrize("url", [HOME, "http://api.example/"])
async def test_the_sent_callback_is_called_once(url):
    told = []
    asking, _ = asker(200, url=url)
    await asking.send_request(on_sent=lambda: told.append("sent"))
    assert told == ["sent"]


async def test_each_chunk_of_a_response_that_may_be_held_restarts_the_timeout():
    asking, _ = asker([*[9, b"x"] * 5, END], timeout=5)
    assert (await asking.send_request(wait=5)).body == b"xxxxx"
    assert await refused(asking, TimeoutError) == "no complete response within 5 s"


BAD_LOCATIONS = [b"location: /", b"http://a:port/", b"http://xn--zz/", b"/" + b"x" * 70_000]


@pytest.mark.parametrize("location", BAD_LOCATIONS)
async def test_a_redirect_to_something_that_is_not_a_url_is_unusable(location):
    """The client of httpx parses the `Location` of a redirect even if it does not follow it."""
    asking, script = asker((307, {b"location": location}, [END]))
    text = await refused(asking, UnusableResponse)
    assert text.startswith(
        "https://api.example/ask?key=…: the server redirected to an invalid URL: the client raised "
    )
    assert script.open == 0


@pytest.mark.parametrize("location", [b":https://[", b":https://[" + CANARY.encode() + b"]/"])
async def test_a_redirect_that_httpx_cannot_join_is_unusable(location):
    """It lets the ValueError of urllib or ipaddress through. A hook of the caller's client may raise one too."""
    asking, script = asker((307, {b"location": location}, [END]))
    text = await refused(asking, UnusableResponse)
    assert text == (
        "https://api.example/ask?key=…: the server redirected to an invalid URL: the client raised ValueError"
    )
    assert script.open == 0


async def test_another_protocol_error_is_not_reported_as_a_bad_redirect():
    asking, _ = asker(httpx.RemoteProtocolError("illegal status line"))
    await refused(asking, httpx.RemoteProtocolError)


async def test_a_redirect_is_not_followed():
    asking, script = asker((307, {"Location": "https://elsewhere.example/"}, [END]))
    assert (await asking.send_request()).status == 307
    assert len(script.requests) == 1


async def test_an_untrusted_certificate_is_not_reported_as_a_bad_redirect():
    """Its error is a ValueError too, which the caller's client may let through."""
    asking, _ = asker(ssl.SSLCertVerificationError(1, "certificate has expired"))
    await refused(asking, ssl.SSLCertVerificationError)


async def test_a_network_error_is_raised_unchanged():
    asking, _ = asker(RESET)
    assert await refused(asking, httpx.ReadError) == "Connection reset by peer"


# Credentials go only to the origin of the server (G12)


async def test_credentials_are_sent_to_the_origin_of_the_url():
    asking, script = asker(200, headers={"X-Key": CANARY}, auth=lambda: "t")
    await asking.send_request()
    await asking.send_request(url="https://API.example:443/other")
    assert script.sent("x-key") == [CANARY] * 2
    assert script.sent("authorization") == ["Bearer t"] * 2


@pytest.mark.parametrize(
    "url",
    [ELSEWHERE, "http://api.example/ask", "https://api.example:8443/ask", "https://api.example.evil.example/"],
)
async def test_no_credentials_or_client_settings_are_sent_to_another_origin(url):
    cookies = http.cookiejar.CookieJar()
    client = {
        "headers": {"X-Mine": CANARY, "Authorization": f"Bearer {CANARY}", "User-Agent": CANARY},
        "params": {"key": CANARY},
        "cookies": cookies,
        "auth": ("me", CANARY),
    }
    asking, script = asker(200, client=client, headers={"X-Key": CANARY}, auth=CANARY)
    asking._given_client.cookies.set("session", CANARY, domain=httpx.URL(url).host)
    await asking.send_request("POST", url, content=b"{}", headers={"Content-Type": "application/json"})
    (request,) = script.requests
    assert CANARY not in repr(request.url)
    assert set(request.headers) == {"host", "content-type", "content-length", "accept-encoding", "user-agent"}
    assert CANARY not in request.headers["user-agent"]
    assert script.bodies == [b"{}"]


async def test_the_user_and_password_of_the_url_are_sent_only_to_its_origin():
    asking, script = asker(200, url=f"https://me:{CANARY}@api.example/ask#part", client={"auth": ("other", "x")})
    assert asking.url == "https://api.example/ask"
    await asking.send_request()
    await asking.send_request(url=ELSEWHERE)
    assert script.sent("authorization") == ["Basic bWU6YzRuNHJ5", None]


@pytest.mark.parametrize("name", ["authorization", "Authorization"])
def test_an_authorization_header_and_a_user_in_the_url_are_refused_together(name):
    with pytest.raises(ValueError, match="pass credentials only once"):
        asker(200, url="https://me:pw@api.example/", headers={name: "Key k"})


async def test_the_user_of_the_url_replaces_the_authorization_of_the_header_function():
    asking, script = asker(200, url="https://me:pw@api.example/", headers=lambda: {"Authorization": "Key k"})
    await asking.send_request()
    assert script.requests[0].headers.get_list("authorization") == ["Basic bWU6cHc="]


async def test_an_auth_flow_of_httpx_is_applied_by_the_client():
    asking, script = asker(200, auth=httpx.BasicAuth("me", "pw"))
    await asking.send_request()
    await asking.send_request(url=ELSEWHERE)
    assert script.sent("authorization") == ["Basic bWU6cHc=", None]


async def test_the_headers_given_as_override_replace_all_others_at_the_origin_alone():
    asking, script = asker(200, auth=httpx.BasicAuth("me", "pw"), headers={"X-Key": "1"})
    await asking.send_request(override={"authorization": "Bearer claim", "x-key": "2"})
    await asking.send_request(url=ELSEWHERE, override={"authorization": "Bearer claim"})
    assert script.sent("authorization") == ["Bearer claim", None]
    assert script.sent("x-key") == ["2", None]


async def test_a_client_sends_its_own_credentials_when_no_others_are_given():
    asking, script = asker(200, client={"auth": ("me", "c4n4ry"), "headers": {"X-Mine": "1"}})
    await asking.send_request()
    assert script.sent("authorization") == ["Basic bWU6YzRuNHJ5"]
    assert script.sent("x-mine") == ["1"]


async def test_a_given_token_replaces_the_auth_of_the_client():
    asking, script = asker(200, client={"auth": ("other", "x")}, auth="t")
    await asking.send_request()
    assert script.sent("authorization") == ["Bearer t"]


async def test_a_token_takes_precedence_over_the_authorization_header_of_one_request():
    asking, script = asker(200, auth="t")
    await asking.send_request(headers={"authorization": "nobody", "accept": "text/plain"})
    assert script.sent("authorization") == ["Bearer t"]
    assert script.sent("accept") == ["text/plain"]


async def test_a_token_provider_that_hangs_fails_after_timeout():
    async def token():
        await anyio.sleep_forever()

    asking, script = asker(200, auth=token, timeout=5)
    assert "failed: TimeoutError" in await refused(asking, CredentialsFailed)
    assert script.requests == []
    await asking.send_request(url=ELSEWHERE)  # no effect at another origin


# Clients


async def test_a_given_client_stays_open():
    asking, script = asker(200)
    async with asking.connected():
        await asking.send_request()
    assert not script.closed


@pytest.fixture
def own(monkeypatch):
    """Opened clients, each with a script that records when it is closed."""
    scripts = []

    def open_client(timeout, *, ssl_context):
        scripts.append(Script(200))
        return client_of(scripts[-1])

    monkeypatch.setattr(sending, "open_client", open_client)
    return scripts


async def test_each_request_opens_and_closes_its_own_client_when_none_is_given(own):
    asking = ListenerClient(HOME)
    await asking.send_request()
    await asking.send_request()
    assert [(len(script.requests), script.closed) for script in own] == [(1, True)] * 2


async def test_requests_within_an_opened_block_share_one_client(own):
    asking = ListenerClient(HOME)
    async with asking.connected():
        await asking.send_request()
        await asking.send_request()
        assert [(len(script.requests), script.closed) for script in own] == [(2, False)]
    assert own[0].closed
    await asking.send_request()
    assert len(own) == 2


# Invalid arguments


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"url": "ftp://api.example/"}, ValueError, "must start with http"),
        ({"url": "https://me:pw@api.example/", "auth": "t"}, ValueError, "pass credentials only once"),
        ({"client": object()}, TypeError, "httpx.AsyncClient"),
        ({"client": httpx.AsyncClient(), "ssl_context": ssl.create_default_context()}, ValueError, "not both"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"max_body": None}, TypeError, "max_body"),
        ({"headers": {"A": "b\n"}}, ValueError, "not allowed in a header"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options, kind, text):
    with pytest.raises(kind, match=text):
        ListenerClient(**{"url": HOME, **options})


async def test_a_request_to_an_invalid_url_is_refused_and_not_sent():
    asking, script = asker(200)
    assert "url must start with http:// or https://" in await refused(asking, ValueError, url=f"//{CANARY}")
    assert script.requests == []


def test_an_answer_can_be_constructed_directly():
    assert ListenerResponse(200, httpx.Headers(), b"1", "", None).json() == 1
