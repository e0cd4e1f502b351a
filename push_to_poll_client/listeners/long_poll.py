"""Listener for long polls: each response with news is a push.

The server holds its response until there is news. A long poll has no moment at which it is connected. The channel
is up when a response had news, or when the server has held a request for a second. A response without news that
comes at once does not bring the channel up.

`_requests.py` sends the requests, `LongPollPace` of `_backoff.py` decides when to send the next one, and
`_base.py` starts over after a failure.
"""

import functools
import inspect
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias

import anyio
import httpx
import msgspec

from push_to_poll_client._event_loop import Background
from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._http.credentials import Auth, HeaderSource
from push_to_poll_client._http.headers import requested_delay
from push_to_poll_client._http.origins import without_secrets
from push_to_poll_client._json import decode
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_number
from push_to_poll_client.listeners._backoff import DOWN_AFTER, LongPollPace, ReconnectAction, ReconnectBackoff
from push_to_poll_client.listeners._base import ChannelOptions, ReadLoopListener
from push_to_poll_client.listeners._failures import Failure, error_response, http_failure_of
from push_to_poll_client.listeners._hints import parse_path, values_at
from push_to_poll_client.listeners._requests import ListenerClient, ListenerResponse, UnusableResponse

__all__ = ["LongPollListener"]

HELD_AFTER = 1.0
"""Seconds without a response after which the server is assumed to hold the request."""

# A single one may come from a server that closes late, or from a machine that slept.
MAX_UNANSWERED = 2
"""Requests in a row without a response after which the connection counts as failed."""

EMPTY_ASK_DELAY = 1.0
"""Seconds before `ask` is called again after it returned a `None` value."""

UNCHANGED_ASK_DELAYS = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between calls of `ask` after news, until its result changes: the server would send the same news."""

PROXY_TIMEOUT_STATUSES = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.GATEWAY_TIMEOUT})
"""Statuses of a proxy that does not let a server hold its response for that long."""

BAD_POSITION_STATUSES = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT})
"""Statuses of a server that rejects the cursor (Dropbox: 409 `reset`). The consumer's poll will find out."""

RequestParams: TypeAlias = Mapping[str, Any]
RequestParamsSource: TypeAlias = RequestParams | Callable[[], RequestParams | Awaitable[RequestParams]]


MAX_POSITION = 8192
"""Characters of the longest value sent back. CouchDB's have a few thousand; servers reject longer URLs."""

NewsSource: TypeAlias = str | Callable[[ListenerResponse], object]
NextSource: TypeAlias = Mapping[str, str] | Callable[[ListenerResponse], Mapping[str, Any]]


class LongPollResult(NamedTuple):
    """Content of one response. The next request adds the parameters in `position`."""

    news: bool
    position: Mapping[str, Any]
    retry_after: float | None


NO_NEWS = LongPollResult(news=False, position={}, retry_after=None)


class LongPollReader:
    """Reads responses as declared by the arguments of a `LongPollListener`."""

    def __init__(self, news: NewsSource | None, next: NextSource | None, retry_after: str | None) -> None:
        if next is not None and not callable(next) and not isinstance(next, Mapping):
            raise TypeError(f"next must be a mapping of names to paths, or a function, got {type(next).__name__}")
        self._is_news = _has_content if news is None else news if callable(news) else _last_at(news)
        self._next = next if callable(next) else _each_last_at(next or {})
        self._get_retry_after = None if retry_after is None else _last_at(retry_after)

    def read(self, response: ListenerResponse) -> LongPollResult:
        if response.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            return NO_NEWS
        try:
            news, position = bool(self._is_news(response)), dict(self._next(response) or {})
            too_long = [name for name, value in position.items() if len(query_value(value)) > MAX_POSITION]
        except UnusableResponse:
            raise
        except Exception as error:  # noqa: BLE001 - functions may raise anything, and the text may hold a secret
            raise UnusableResponse(
                f"the function given as news= or next= failed: {type(error).__name__}"
            ) from None
        if too_long:
            raise UnusableResponse(
                f"the server sent a position {too_long[0]!r} of more than {MAX_POSITION} characters"
            )
        position = {name: value for name, value in position.items() if value is not None}
        seconds = None if self._get_retry_after is None else self._get_retry_after(response)
        asks = isinstance(seconds, int | float) and seconds >= 0
        return LongPollResult(news, position, seconds if asks else None)


def _has_content(response: ListenerResponse) -> bool:
    try:
        value = decode(response.body)
    except (ValueError, RecursionError):  # not JSON
        return True
    return not (value is None or value is False or value in ([], {}))  # 0 equals False, and is news


def _last_at(path: str) -> Callable[[ListenerResponse], Any]:
    """Return a function that reads the value at a path, or None. With lists along the path, the last value."""
    steps = parse_path(path)

    def get(response: ListenerResponse) -> Any:
        found = [value for value in values_at(response.json(), steps) if value is not None]
        return found[-1] if found else None

    return get


def _each_last_at(paths: Mapping[str, str]) -> Callable[[ListenerResponse], Mapping[str, Any]]:
    getters = {name: _last_at(path) for name, path in paths.items()}
    return lambda response: {name: get(response) for name, get in getters.items()}


def query_value(value: Any) -> str:
    """Return a JSON value as sent in a query: a text unchanged, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


class LongPollListener(ReadLoopListener[ListenerResponse]):
    """Wakes on every response with news, which the server holds until there is news.

        LongPollListener("https://api.example/orders/changes?wait=60")

        LongPollListener(  # CouchDB
            "https://db.example/orders/_changes?feed=longpoll&since=now&timeout=60000",
            news="results", next={"since": "last_seq"},
        )
        LongPollListener(  # Syncthing
            "http://127.0.0.1:8384/rest/events?limit=1&timeout=60",
            headers={"X-API-Key": key}, next={"since": "id"},
        )
        LongPollListener(  # Dropbox, which expects no credentials here
            "https://notify.dropboxapi.com/2/files/list_folder/longpoll", method="POST",
            ask=lambda: {"cursor": files.status().cursor, "timeout": 30},
            news="changes", retry_after="backoff", wait=120,
        )

    A 200 is news, unless its JSON is `null`, `false`, `[]` or `{}`; 204 and 304 are not. A path consists of names
    separated by dots; a list along the path stands for its last item that has the rest of the path.

    It never becomes a busy loop. Ten responses with news may follow each other without a pause, then one a second.
    Responses without news that come at once cost pauses that double, up to one request in 60 s. The server's
    `Retry-After` and similar headers are obeyed with any status, and so is the value at `retry_after`. A request
    without a response within `wait` and `open_timeout` is not news; the second in a row is a failure.

    After a failure the listener retries as all listeners do. It drops the position kept by `next`, since the
    server may have rejected that. 400 and 409 also wake, since the cursor may be invalid. Redirects are not
    followed, since credentials stay with their origin.

    Without a position (`ask`, `next`), a server does not report events between two requests. After a pause the
    channel therefore comes up again and wakes. Events between a response and an immediate next request are found
    by the fallback poll.

    Args:
        url: An `http://` or `https://` URL. A user and password in it are sent as `Authorization: Basic`.
        method: `GET` or `POST`.
        ask: Parameters of each request: a mapping of JSON values, or a function (async, or plain and quick) that
            returns one and is called for each request. While a value is `None`, no request is sent and the
            function is called again every second. After news it is called again until its result changes, for at
            most 3 s. A GET sends the parameters in its query, replacing parameters of the URL with the same names;
            a POST sends them as a JSON object.
        next: Further parameters of the next request: a mapping of names to paths in the response's JSON, or a
            function from the response to a mapping. A value that is missing stays unchanged.
        news: Path in the response's JSON with a value if there is news (not `null`, `false`, 0, "" or empty); or a
            function of the response.
        retry_after: Path in the response's JSON of the seconds to wait before the next request.
        wait: Seconds for which the server may hold a response, including its jitter; above the timeout that the
            request names. White space from the server restarts this time.
        auth: Credentials: a bearer token, a pair of user and password, an `httpx.Auth`, or a function (async, or
            plain and quick) that returns a token and is called at each connect. After a 401 the function is called
            once more soon; after that come the slow retries. `None` uses the user and password of the URL, else
            the credentials of `client`.
        headers: Headers of each request: a mapping, or a function (async, or plain and quick) that returns one and
            is called at each connect. `None` sends none.
        hint: Turns the response (its `status`, `headers`, `body` and `json()`) into a `Push`, or into `None` if it
            is not a push. If it raises, the error is logged and the response counts as a plain push.
        classify: Classifies a failure first (an `httpx.HTTPStatusError`, another error of the client, an
            `OSError`, …): returns a `ReconnectAction`, or `None` for the default.
        ssl_context: TLS settings. `None` uses the machine's trusted certificates.
        max_age: Seconds after which a healthy connection is renewed, drawn from half of this to all of it. With
            600, a fleet of 1,000 makes 2.2 connections a second. `None` means never.
        open_timeout: Seconds to get headers and token, again to connect, and again for a response beyond `wait`.
        max_body: Bytes of the largest response. A larger one counts as a push and is retried slowly.
        client: An `httpx.AsyncClient` or compatible client that sends the requests. It is not closed. `None` opens
            one for each connection.

    Attributes:
        name: Name in log and status: the URL without user, password and query values.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The URL is not an http URL, a limit is not positive, a path is malformed, or there are two
            credentials.
    """

    _log = ConsumerLog(logging.getLogger(__name__))

    def __init__(
        self,
        url: str,
        *,
        method: str = "GET",
        ask: RequestParamsSource | None = None,
        next: NextSource | None = None,
        news: NewsSource | None = None,
        retry_after: str | None = None,
        wait: float = 60.0,
        auth: Auth | None = None,
        headers: HeaderSource | None = None,
        hint: Callable[[ListenerResponse], Push | None] | None = None,
        classify: Callable[[Exception], ReconnectAction | None] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_age: float | None = 600.0,
        open_timeout: float = 10.0,
        max_body: int = 1024 * 1024,
        client: Any = None,
    ) -> None:
        if method not in {"GET", "POST"}:
            raise ValueError(f"method must be GET or POST, got {method!r}")
        check_number("wait", wait, above_zero=True)
        options = ChannelOptions(hint, classify, max_age, open_timeout=open_timeout)
        self._client = ListenerClient(
            url,
            auth=auth,
            headers=headers,
            ssl_context=ssl_context,
            timeout=open_timeout,
            max_body=max_body,
            client=client,
        )
        super().__init__(without_secrets(url), options, self._client.credentials)
        self._method = method
        self._ask = ask if callable(ask) else _checked({} if ask is None else ask)
        self._reader = LongPollReader(news, next, retry_after)
        self._wait = wait
        self._tracks_position = callable(ask) or next is not None
        self._is_listening = False
        self._reset()

    def _reset(self) -> None:
        self._pace = LongPollPace(self._wait)
        self._position: RequestParams = {}
        self._params_with_news: RequestParams | None = None

    async def listen(self, channel: Channel, /) -> None:
        """Send long polls and report to `channel`, until cancelled.

        Raises:
            ListenerError: A retry cannot help: the server answered 410, or `classify` gave up.
            RuntimeError: Another consumer uses this object; both would move the same position.
        """
        if self._is_listening:
            raise RuntimeError(f"{self.name}: another consumer uses this listener; give each consumer its own")
        self._is_listening = True
        try:
            self._reset()  # the event loop, and so its clock, may be a new one
            await super().listen(channel)
        finally:
            self._is_listening = False

    def _connect(self) -> AbstractAsyncContextManager[None]:
        return self._client.connected()

    def _opened(self, channel: Channel, reconnect: ReconnectBackoff) -> None:
        self._channel, self._reconnect = channel, reconnect
        self._is_up = False  # True if reported as up, and no push could have been lost since
        self._unanswered = 0  # requests in a row without a response

    def _up(self) -> None:
        if not self._is_up:
            self._is_up = True
            self._report_up(self._channel, self._reconnect)

    async def _read(self, connection: None) -> Sequence[ListenerResponse]:  # noqa: ARG002 - it has no state
        await self._pause()
        params = await self._wait_for_params()
        sent_at = anyio.current_time()
        response = await self._get_response(params)
        result = NO_NEWS if response is None else self._reader.read(response)
        held = anyio.current_time() - sent_at
        if result.news or not self._pace.is_early(held):
            self._up()
        requested = None if response is None else requested_delay(response.status, response.headers, time.time())
        self._position = {**self._position, **result.position}
        self._pace.answered(
            anyio.current_time(),
            held=held,
            news=result.news,
            retry_after=max(requested or 0.0, result.retry_after or 0.0),
            fraction=self._fraction(),
        )
        self._params_with_news = params if result.news else None
        return () if response is None or not result.news else (response,)

    async def _pause(self) -> None:
        pause = self._pace.pause(anyio.current_time())
        if pause > DOWN_AFTER:
            reason = "the server asked for a pause, or does not wait for news"
            self._channel.down(
                PushToPollError(f"{self.name}: waiting {pause:.1f} s before the next request, since {reason}")
            )
        if pause > DOWN_AFTER or (pause and not self._tracks_position):
            self._is_up = False
        await anyio.sleep(pause)

    async def _wait_for_params(self) -> RequestParams:
        delays = iter(UNCHANGED_ASK_DELAYS if callable(self._ask) else ())
        while True:
            params = await self._current_params()
            if None in params.values():
                await anyio.sleep(EMPTY_ASK_DELAY)
            elif params == self._params_with_news and (delay := next(delays, None)):
                await anyio.sleep(delay)
            else:
                return params

    async def _current_params(self) -> RequestParams:
        if not callable(self._ask):
            return {**self._ask, **self._position}
        try:
            with anyio.fail_after(self._open_timeout):
                params = self._ask()
                return {**_checked(await params if inspect.isawaitable(params) else params), **self._position}
        except Exception as error:  # noqa: BLE001 - the function may raise anything, and the text may hold a secret
            raise PushToPollError(f"the function given as ask= failed: {type(error).__name__}") from None

    async def _get_response(self, params: RequestParams) -> ListenerResponse | None:
        """Return the response; None if none came in time, and a retry may help."""
        try:
            response = await self._send(params)
            response = response if response.status == HTTPStatus.NOT_MODIFIED else response.expect()
        except (TimeoutError, httpx.HTTPStatusError) as error:
            self._unanswered += 1
            failed = error_response(error)
            timed_out = failed is None or failed.status_code in PROXY_TIMEOUT_STATUSES
            if not (self._is_up and self._unanswered < MAX_UNANSWERED and timed_out):
                raise
            return None
        self._unanswered = 0
        return response

    async def _send(self, params: RequestParams) -> ListenerResponse:
        """Send the request; report the channel as up once the server has held it for a while."""

        async def mark_up() -> None:
            await anyio.sleep(HELD_AFTER)
            self._up()

        async with Background() as background:
            on_sent = functools.partial(background.tasks.start_soon, mark_up)
            send = functools.partial(self._client.send_request, self._method, wait=self._wait, on_sent=on_sent)
            if self._method == "POST":
                return await send(
                    content=msgspec.json.encode(params), headers={"content-type": "application/json"}
                )
            query = {name: query_value(value) for name, value in params.items()}
            return await send(str(httpx.URL(self._client.url).copy_merge_params(query)) if query else None)

    def _failure(self, error: Exception) -> Failure:
        failure = http_failure_of(error, wanted="an answer to a long poll")
        response = error_response(error)
        refused = self._tracks_position and response is not None and response.status_code in BAD_POSITION_STATUSES
        self._position, self._params_with_news = {}, None
        return failure._replace(hid_a_push=refused or isinstance(error, UnusableResponse))


def _checked(params: object) -> RequestParams:
    if not isinstance(params, Mapping) or not all(isinstance(name, str) for name in params):
        expected = "a mapping of names to JSON values, or a function that returns one"
        raise TypeError(f"ask must be {expected}, got {type(params).__name__}")
    msgspec.json.encode(params)
    return params
