"""`push-to-poll tail`: print a feed, one JSON line per message, or run a command per message.

The options describe a `Consumer`; --push and --webhook give it listeners. The first SIGINT or SIGTERM stops it
after the current message, the second ends the process at once.
"""

import argparse
import functools
import os
import re
import signal
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any, Final

import anyio
import httpx
from anyio.abc import TaskStatus
from tenacity import AsyncRetrying, stop_after_attempt

from push_to_poll_client import (
    Consumer,
    FeedError,
    HTTPFeed,
    Listener,
    MemoryStore,
    Message,
    SSEListener,
    Throttled,
    WebSocketListener,
)
from push_to_poll_client._consumer import DEFAULT_RETRY
from push_to_poll_client._event_loop import Background
from push_to_poll_client._http.origins import origin_of
from push_to_poll_client._options import FinalAction, OnFailure
from push_to_poll_client._protocols import Store
from push_to_poll_client._validation import check_count, check_number
from push_to_poll_client.cli._exec import Command, CommandNotStarted
from push_to_poll_client.cli._output import Exit, ReaderGone, UsageError, write_line
from push_to_poll_client.cli._parser import Commands
from push_to_poll_client.cli._state import check_cursor
from push_to_poll_client.cli._stores import STORE_VARIABLE, add_store_to, find_store
from push_to_poll_client.listeners.handshakes import dropbox_challenge
from push_to_poll_client.listeners.verifiers import dropbox, github, no_verification, standard_webhooks, stripe
from push_to_poll_client.listeners.webhook import WebhookListener

SHUTDOWN_TIMEOUT = 10.0
"""Seconds for the current message after the first signal; the library's default."""

DEGRADED_INTERVAL = 10.0
"""Seconds between polls while a push channel is down: the library's default."""

ONCE_TIMEOUT = 60.0
"""Longest pause requested by the server, in seconds, that `--once` waits. For a longer one the command ends."""

EXEC_TIMEOUT = 60.0
"""Seconds for one run of a command: enough for a slow API call, and a hanging command is noticed in a minute."""

EXEC_ATTEMPTS = 5
"""Runs per message, with the library's delays: 8 to 10 s, enough to outlast a restart of a service it calls."""

POLICIES: Final[dict[str, FinalAction]] = {"stop": "stop", "dead-letter": "dead_letter", "skip": "skip"}

NO_VERIFICATION = "none"

_VERIFIERS: dict[str, Callable[[str], Any]] = {
    "github": github,
    "standard-webhooks": standard_webhooks,
    "stripe": stripe,
    "dropbox": dropbox,
}
"""The values of --webhook-verify: schemes by which a server signs its requests."""


def add_to(commands: Commands) -> None:
    parser = commands.add(
        "tail",
        run,
        help="follow a feed: print each message as a JSON line, or run a command for it",
        description="Follow a feed that implements the HTTP Feeds specification. Each message is one JSON line on "
        "standard output or, with --exec, on the standard input of a command. Everything else goes to standard "
        "error. Without --push and --webhook, tail only polls.",
    )
    add = parser.add_argument
    add("url", metavar="URL", help="the URL of the feed")
    add(
        "--push",
        metavar="URL",
        action="append",
        default=[],
        help="a push channel; each push causes a poll. A websocket (ws://, wss://) or server-sent events "
        "(http://, https://). May be given several times",
    )
    add_store_to(
        parser,
        "The next run continues after the last processed message. Without a store, each run starts at --start",
    )
    add(
        "--name",
        metavar="NAME",
        help="the consumer's name in the store. Recommended: without it the feed's URL is the name, and a "
        "run with a changed URL starts over",
    )
    add("--once", action="store_true", help="exit at the end of the feed")
    add(
        "--fallback-interval",
        metavar="S",
        type=float,
        default=60.0,
        help="poll after this many seconds without a push (default: 60)",
    )
    add(
        "--max-wait",
        metavar="S",
        type=float,
        help="long polling: let the server hold its answer for up to this many seconds",
    )
    add(
        "--token-env",
        metavar="NAME",
        help="the environment variable that contains a bearer token for the feed. Push channels on the same "
        "server get the token too",
    )
    add(
        "--webhook",
        metavar="HOST:PORT",
        help="a push channel: listen on this address for webhooks; each request causes a poll. Needs "
        "--webhook-verify and the extra `serve`",
    )
    add(
        "--webhook-verify",
        metavar="HOW",
        help=f"the scheme by which the server signs its requests: {', '.join(_VERIFIERS)}; or {NO_VERIFICATION}: "
        "anyone who reaches the address can cause polls, within the rate limit",
    )
    add(
        "--webhook-secret-env",
        metavar="NAME",
        help="the environment variable that contains the secret for --webhook-verify",
    )
    add(
        "--exec",
        metavar="CMD",
        help="run this command for each message, with the JSON line on its standard input, instead of printing. "
        "Exit code 0 means processed, any other means failed. CMD is split into words as in a shell, but no shell "
        "runs it. It gets the environment without the variables that contain secrets. Processes that it leaves "
        "running in the background are not ended",
    )
    add(
        "--exec-timeout",
        metavar="S",
        type=float,
        help="seconds for one run. After that the command and all processes that it started are ended, and the "
        f"message has failed (default: {EXEC_TIMEOUT:g})",
    )
    add(
        "--exec-attempts",
        metavar="N",
        type=int,
        help=f"attempts per message before --on-failure applies (default: {EXEC_ATTEMPTS}, within 8 to 10 seconds "
        "if each fails at once)",
    )
    add(
        "--on-failure",
        metavar="WHAT",
        default="stop",
        help="action after the last attempt: stop before the message (the default), save it as a dead-letter in "
        "the store (see push-to-poll dead-letters), or skip it with a log line",
    )
    add(
        "--start",
        metavar="CURSOR",
        default="inception",
        help="start after this cursor without a saved state (default: inception, the beginning of the feed)",
    )
    add("-v", "--verbose", action="count", help="log more; -vv logs details and tracebacks")


def run(options: argparse.Namespace) -> int:
    """Follow the feed until its end (`--once`), a signal, or an error."""
    try:
        command = _command(options)
        webhook = _webhook(options)
        given = find_store(options)
        store = MemoryStore() if given is None else given.consumer_store()
        consumer = _consumer(options, command, store, [] if webhook is None else [webhook])
        follow = functools.partial(_run_once, consumer) if options.once else consumer.run
        if webhook is not None:
            # Imported here because this module needs uvicorn.
            from push_to_poll_client.cli._webhook import parse_address, serve_webhook

            follow = functools.partial(serve_webhook, webhook, *parse_address(options.webhook), consumer.run)
    except (TypeError, ValueError) as error:  # raised by the library's constructors
        raise UsageError(str(error)) from error
    try:
        return anyio.run(until_signalled, functools.partial(_follow_and_close, follow, store), command)
    except ReaderGone:
        return Exit.DONE


async def _follow_and_close(follow: Callable[[], Awaitable[None]], store: Store) -> None:
    try:
        await follow()
    finally:
        if close := getattr(store, "aclose", None):
            with anyio.CancelScope(shield=True):  # it takes a few seconds at most
                await close()


def _consumer(
    options: argparse.Namespace, command: Command | None, store: Store, webhooks: list[Listener]
) -> Consumer:
    if options.once and (options.push or webhooks):
        raise ValueError("--once does not wait for pushes; leave out --push and --webhook")
    is_kept = not isinstance(store, MemoryStore)
    if options.name is not None and not is_kept:
        raise ValueError("--name is the consumer's name in the store; add --store, or leave out --name")
    check_cursor("--start", options.start)
    check_number("--fallback-interval", options.fallback_interval, above_zero=True)
    check_number("--max-wait", options.max_wait, above_zero=True, optional=True)
    token = None if options.token_env is None else _environment_variable("--token-env", options.token_env, "token")
    return Consumer(
        HTTPFeed(options.url, auth=token, max_wait=options.max_wait),
        store=store,
        listeners=[*(listener_for(url, feed=options.url, token=token) for url in options.push), *webhooks],
        process=command or write_line,
        name=options.name,
        fallback_interval=options.fallback_interval,
        degraded_interval=min(DEGRADED_INTERVAL, options.fallback_interval),
        shutdown_timeout=SHUTDOWN_TIMEOUT,
        retry=_retry(options),
        on_failure=_on_failure(options, is_kept=is_kept),
        start=options.start,
        standby=False,  # the command shows no log lines of INFO, so it would wait without a word
    )


def _command(options: argparse.Namespace) -> Command | None:
    if options.exec is None:
        if options.exec_timeout is not None or options.exec_attempts is not None:
            raise ValueError("--exec-timeout and --exec-attempts need --exec; add --exec, or leave them out")
        return None
    timeout = EXEC_TIMEOUT if options.exec_timeout is None else options.exec_timeout
    secrets = {name for name in (options.token_env, options.webhook_secret_env) if name is not None}
    secrets.add(STORE_VARIABLE)  # its URL may contain a password
    return Command(options.exec, timeout=timeout, secrets=secrets)


def _retry(options: argparse.Namespace) -> AsyncRetrying | None:
    if options.exec is None:  # no retry: a failed write to standard output fails a second later too
        return None
    attempts = EXEC_ATTEMPTS if options.exec_attempts is None else options.exec_attempts
    return DEFAULT_RETRY.copy(stop=stop_after_attempt(check_count("--exec-attempts", attempts)))


def _on_failure(options: argparse.Namespace, *, is_kept: bool) -> OnFailure:
    policy = POLICIES.get(options.on_failure)
    if policy is None:
        raise ValueError(f"--on-failure must be one of {', '.join(POLICIES)}")
    if policy == "dead_letter" and not is_kept:
        raise ValueError("--on-failure dead-letter needs --store, which keeps the dead letters")

    def decide(_: Message, error: Exception) -> FinalAction:
        # A command that cannot start fails for every message: all would be skipped or become dead letters.
        return "stop" if isinstance(error, CommandNotStarted) else policy

    return decide


def _webhook(options: argparse.Namespace) -> WebhookListener | None:
    """Make the listener for --webhook, or return None without it. Errors show no value of an option."""
    how, secret_name = options.webhook_verify, options.webhook_secret_env
    if options.webhook is None:
        if how is not None or secret_name is not None:
            raise ValueError("--webhook-verify and --webhook-secret-env need --webhook; add it, or leave them out")
        return None
    if find_spec("uvicorn") is None:
        raise ValueError(
            "--webhook needs uvicorn, which is not installed: pip install 'push-to-poll-client[serve]'"
        )
    if how == NO_VERIFICATION:
        if secret_name is not None:
            raise ValueError(f"--webhook-verify {NO_VERIFICATION} needs no secret; leave out --webhook-secret-env")
        return WebhookListener(no_verification())
    if how not in _VERIFIERS:
        raise ValueError(
            f"--webhook needs --webhook-verify with one of {', '.join(_VERIFIERS)}, {NO_VERIFICATION}"
        )
    if secret_name is None:
        raise ValueError("--webhook-verify needs --webhook-secret-env, the variable that contains the secret")
    secret = _environment_variable("--webhook-secret-env", secret_name, "secret")
    return WebhookListener(_VERIFIERS[how](secret), handshake=[dropbox_challenge()] if how == "dropbox" else [])


def _environment_variable(option: str, name: str, what: str) -> str:
    if value := os.environ.get(name):
        return value
    raise ValueError(
        f"{option}: the environment variable is not set or empty; give the name of a variable, not the {what}"
    )


async def _run_once(consumer: Consumer) -> None:
    async with consumer:
        while not (result := await consumer.poll_now(timeout=ONCE_TIMEOUT)).caught_up:
            if result.standstill is not None:
                raise FeedError(f"{result.standstill}; the server or a cache may ignore the cursor")
            # poll_now() waits for the retry of a failed message, but not longer than its timeout.
            if result.retry_in is not None and result.retry_in > ONCE_TIMEOUT:
                raise Throttled(
                    f"a failed message will be retried in {result.retry_in:.0f} s, and the messages after it wait "
                    "too; run this command again then",
                    until=anyio.current_time() + result.retry_in,
                    retry_after=result.retry_in,
                )


_LISTENER_TYPES: dict[str, Callable[..., Listener]] = {
    "ws": WebSocketListener,
    "wss": WebSocketListener,
    "http": SSEListener,
    "https": SSEListener,
}


def listener_for(push: str, *, feed: str, token: str | None) -> Listener:
    """Make the listener for a push channel by its scheme. Errors show no part of the URL."""
    # The feed's token is sent only to the same server (G12).
    kind = _LISTENER_TYPES.get(push.partition(":")[0].lower())
    if kind is None:
        raise ValueError("--push must be a websocket (ws://, wss://) or server-sent events (http://, https://)")
    try:
        return kind(push, auth=token if token is not None and same_server(push, feed) else None)
    except ValueError as error:
        raise ValueError(f"--push: {error}") from error


def same_server(push: str, feed: str) -> bool:
    """Return True if two URLs have the same host, port and kind of encryption."""
    try:
        ours, theirs = (httpx.URL(re.sub("^ws", "http", url, flags=re.IGNORECASE)) for url in (push, feed))
    except (httpx.InvalidURL, UnicodeError):  # the listener reports it
        return False
    return origin_of(ours) == origin_of(theirs)


async def until_signalled(follow: Callable[[], Awaitable[None]], command: Command | None = None) -> Exit:
    """Run `follow` until it ends or SIGINT or SIGTERM cancels it, and return the exit code."""
    # The command of --exec gets `SHUTDOWN_TIMEOUT` for the current message; a second signal kills it. An exception
    # of `follow` is raised without a group around it.
    code = Exit.DONE

    async def watch(body: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
        nonlocal code
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                if code is not Exit.DONE:
                    _exit_now(code, command)
                code = Exit.INTERRUPTED if number == signal.SIGINT else Exit.TERMINATED
                if command is not None:
                    command.finish_until(anyio.current_time() + SHUTDOWN_TIMEOUT)
                body.cancel()

    async with Background() as background:
        with anyio.CancelScope() as body:
            await background.tasks.start(watch, body)
            await follow()
    return code


def _exit_now(code: Exit, command: Command | None) -> None:
    """Exit even if a write to standard output blocks or a command does not end."""
    if command is not None:
        command.kill()
    os._exit(code)
