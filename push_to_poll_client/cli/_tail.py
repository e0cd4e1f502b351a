"""`push-to-poll tail`: follow a feed, one JSON line or one run of a command for each message.

The options make a `Consumer`, whose listeners are those of --push and --webhook. The first SIGINT or SIGTERM stops
the consumer after the current message, the second one ends the process at once.
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
    SQLiteStore,
    SSEListener,
    Throttled,
    WebSocketListener,
)
from push_to_poll_client._consumer import DEFAULT_RETRY
from push_to_poll_client._event_loop import Background
from push_to_poll_client._http.origins import origin_of
from push_to_poll_client._options import FinalAction, OnFailure
from push_to_poll_client._validation import check_count, check_number
from push_to_poll_client.cli._exec import Command, CommandNotStarted
from push_to_poll_client.cli._output import Exit, ReaderGone, UsageError, write_line
from push_to_poll_client.cli._parser import Commands
from push_to_poll_client.cli._state import check_cursor
from push_to_poll_client.listeners.handshakes import dropbox_challenge
from push_to_poll_client.listeners.verifiers import dropbox, github, no_verification, standard_webhooks, stripe
from push_to_poll_client.listeners.webhook import WebhookListener

SHUTDOWN_TIMEOUT = 10.0
"""Seconds that the current message gets to finish after the first signal: the library's default."""

DEGRADED_INTERVAL = 10.0
"""Seconds between polls while a push channel is down, unless `--fallback-interval` is shorter: the library's
default."""

ONCE_TIMEOUT = 60.0
"""Seconds that `--once` waits if the server asks for a pause. If it asks for more, the command ends."""

EXEC_TIMEOUT = 60.0
"""Seconds that a command may take for one message: long enough for a slow API call, and a command that hangs is
noticed within a minute."""

EXEC_ATTEMPTS = 5
"""As the library's default, with the same delays: they outlast a restart of a service that the command calls."""

POLICIES: Final[dict[str, FinalAction]] = {"stop": "stop", "dead-letter": "dead_letter", "skip": "skip"}
"""The values of --on-failure."""

NO_VERIFICATION = "none"

_VERIFIERS: dict[str, Callable[[str], Any]] = {
    "github": github,
    "standard-webhooks": standard_webhooks,
    "stripe": stripe,
    "dropbox": dropbox,
}
"""The values of --webhook-verify: how a server signs its requests."""


def add_to(commands: Commands) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add(
        "tail",
        run,
        help="follow a feed: one JSON line per message, or one run of a command",
        description="Follow a feed by the HTTP Feeds specification: one JSON line per message on standard output, "
        "or with --exec on the standard input of a command; everything else on standard error. Without --push "
        "and --webhook it is a plain poller.",
    )
    add = parser.add_argument
    add("url", metavar="URL", help="the feed")
    add(
        "--push",
        metavar="URL",
        action="append",
        default=[],
        help="a push channel, whose messages say when to poll: a websocket (ws://, wss://) or server-sent events "
        "(http://, https://); may be repeated",
    )
    add(
        "--state",
        metavar="FILE",
        help="remember there what was written out; without it, begin at the beginning each time",
    )
    add(
        "--name",
        metavar="NAME",
        help="the consumer's name in that file. Give one: without it the name is that of the feed, and a changed "
        "URL begins anew",
    )
    add("--once", action="store_true", help="stop at the end of the feed")
    add(
        "--fallback-interval",
        metavar="S",
        type=float,
        default=60.0,
        help="longest quiet time in seconds before polling anyway (default: 60)",
    )
    add(
        "--max-wait",
        metavar="S",
        type=float,
        help="let the server hold its answer for this many seconds (long polling)",
    )
    add(
        "--token-env",
        metavar="NAME",
        help="the environment variable with a bearer token for the feed, and for pushes from the same server",
    )
    add(
        "--webhook",
        metavar="HOST:PORT",
        help="a push channel: wait there for requests of the server, which say when to poll. Needs "
        "--webhook-verify, and the extra `serve`",
    )
    add(
        "--webhook-verify",
        metavar="HOW",
        help=f"how the server signs its requests: {', '.join(_VERIFIERS)}; or {NO_VERIFICATION}: whoever reaches "
        "the address may have the feed polled early, within the rate",
    )
    add(
        "--webhook-secret-env", metavar="NAME", help="the environment variable with the secret of --webhook-verify"
    )
    add(
        "--exec",
        metavar="CMD",
        help="instead of printing a message, run this with the line on its standard input: exit code 0 means "
        "processed, anything else failed. It is split into words as by a shell, but no shell sees it; it has "
        "the environment but for the variables with secrets. What it leaves running when it ends is left alone",
    )
    add(
        "--exec-timeout",
        metavar="S",
        type=float,
        help=f"seconds for one run; then it and all that it started are ended, and the message failed "
        f"(default: {EXEC_TIMEOUT:g})",
    )
    add(
        "--exec-attempts",
        metavar="N",
        type=int,
        help=f"how often to run it for a message that fails before giving up (default: {EXEC_ATTEMPTS}, in 8 to "
        "10 seconds if it fails at once)",
    )
    add(
        "--on-failure",
        metavar="WHAT",
        default="stop",
        help="what becomes of a message that failed for good: stop before it (the default), keep it as a "
        "dead-letter in the file of --state (see push-to-poll dead-letters), or skip it with a line in the log",
    )
    add(
        "--start",
        metavar="CURSOR",
        default="inception",
        help="where to begin when there is no state yet: after this cursor (default: inception, the beginning)",
    )
    add("-v", "--verbose", action="count", help="log what is done; twice: in detail")


def run(options: argparse.Namespace) -> int:
    """Follow the feed until its end (`--once`), a signal, or an error.

    Raises:
        PushToPollError: What ended it.
        UsageError: An argument has no meaning.
    """
    try:
        command = _command(options)
        webhook = _webhook(options)
        consumer = _consumer(options, command, [] if webhook is None else [webhook])
        follow = functools.partial(_run_once, consumer) if options.once else consumer.run
        if webhook is not None:
            # Not at the head: this module needs uvicorn.
            from push_to_poll_client.cli._webhook import parse_address, serve_webhook

            follow = functools.partial(serve_webhook, webhook, *parse_address(options.webhook), consumer.run)
    except (TypeError, ValueError) as error:  # of the library's own constructors
        raise UsageError(str(error)) from error
    try:
        return anyio.run(until_signalled, follow, command)
    except ReaderGone:
        return Exit.DONE


def _consumer(options: argparse.Namespace, command: Command | None, webhooks: list[Listener]) -> Consumer:
    if options.once and (options.push or webhooks):
        raise ValueError("--once does not wait for pushes, leave out --push and --webhook")
    if options.name is not None and options.state is None:
        raise ValueError("--name is what the consumer is called in the file of --state, add it")
    check_cursor("--start", options.start)
    check_number("--fallback-interval", options.fallback_interval, above_zero=True)
    check_number("--max-wait", options.max_wait, above_zero=True, optional=True)
    token = None if options.token_env is None else _environment_variable("--token-env", options.token_env, "token")
    return Consumer(
        HTTPFeed(options.url, auth=token, max_wait=options.max_wait),
        store=SQLiteStore(options.state) if options.state is not None else MemoryStore(),
        listeners=[*(listener_for(url, feed=options.url, token=token) for url in options.push), *webhooks],
        process=command or write_line,
        name=options.name,
        fallback_interval=options.fallback_interval,
        degraded_interval=min(DEGRADED_INTERVAL, options.fallback_interval),
        shutdown_timeout=SHUTDOWN_TIMEOUT,
        retry=_retry(options),
        on_failure=_on_failure(options),
        start=options.start,
    )


def _command(options: argparse.Namespace) -> Command | None:
    if options.exec is None:
        if options.exec_timeout is not None or options.exec_attempts is not None:
            raise ValueError("--exec-timeout and --exec-attempts say how to run the command of --exec, add it")
        return None
    timeout = EXEC_TIMEOUT if options.exec_timeout is None else options.exec_timeout
    secrets = {name for name in (options.token_env, options.webhook_secret_env) if name is not None}
    return Command(options.exec, timeout=timeout, secrets=secrets)


def _retry(options: argparse.Namespace) -> AsyncRetrying | None:
    if options.exec is None:  # a line that cannot be written now cannot be written a second later either
        return None
    attempts = EXEC_ATTEMPTS if options.exec_attempts is None else options.exec_attempts
    return DEFAULT_RETRY.copy(stop=stop_after_attempt(check_count("--exec-attempts", attempts)))


def _on_failure(options: argparse.Namespace) -> OnFailure:
    policy = POLICIES.get(options.on_failure)
    if policy is None:
        raise ValueError(f"--on-failure must be {', '.join(POLICIES)}, one of them")
    if policy == "dead_letter" and options.state is None:
        raise ValueError("--on-failure dead-letter needs --state, the file in which dead letters are kept")

    def decide(_: Message, error: Exception) -> FinalAction:
        # A command that cannot be started fails for every message: each would be skipped, or a dead letter.
        return "stop" if isinstance(error, CommandNotStarted) else policy

    return decide


def _webhook(options: argparse.Namespace) -> WebhookListener | None:
    """Make the listener that the options describe, or return None without --webhook.

    Raises:
        ValueError: The options contradict each other, or need something that is not installed. The text has no
            value of an option.
    """
    how, secret_name = options.webhook_verify, options.webhook_secret_env
    if options.webhook is None:
        if how is not None or secret_name is not None:
            raise ValueError("--webhook-verify and --webhook-secret-env are about --webhook, add it")
        return None
    if find_spec("uvicorn") is None:
        raise ValueError("--webhook needs a server: pip install 'push-to-poll-client[serve]'")
    if how == NO_VERIFICATION:
        if secret_name is not None:
            raise ValueError(f"--webhook-verify {NO_VERIFICATION} needs no secret, leave out --webhook-secret-env")
        return WebhookListener(no_verification())
    if how not in _VERIFIERS:
        raise ValueError(
            f"--webhook needs --webhook-verify: {', '.join(_VERIFIERS)} or {NO_VERIFICATION}, one of them"
        )
    if secret_name is None:
        raise ValueError("--webhook-verify needs --webhook-secret-env, the variable in which the secret is")
    secret = _environment_variable("--webhook-secret-env", secret_name, "secret")
    return WebhookListener(_VERIFIERS[how](secret), handshake=[dropbox_challenge()] if how == "dropbox" else [])


def _environment_variable(option: str, name: str, what: str) -> str:
    if value := os.environ.get(name):
        return value
    raise ValueError(f"{option}: no environment variable has that name; give its name, not the {what}")


async def _run_once(consumer: Consumer) -> None:
    async with consumer:
        while not (result := await consumer.poll_now(timeout=ONCE_TIMEOUT)).caught_up:
            if result.standstill is not None:
                raise FeedError(f"{result.standstill}; the server, or a cache on the way, may not heed the cursor")
            # poll_now() waits until a failed message may be tried again, but not beyond its timeout.
            if result.retry_in is not None and result.retry_in > ONCE_TIMEOUT:
                raise Throttled(
                    f"a message that failed may be tried again in {result.retry_in:.0f} s, and those after it "
                    "wait too; run this again then",
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
    """Make the listener for a push channel.

    Args:
        push: The URL of the channel; its scheme selects the kind of listener.
        feed: The URL of the feed.
        token: The token of the feed, or None. It is sent only to the same server (G12).

    Raises:
        ValueError: The URL is not one of a push channel. The text has no part of the URL.
    """
    kind = _LISTENER_TYPES.get(push.partition(":")[0].lower())
    if kind is None:
        raise ValueError("--push must be a websocket (ws://, wss://) or server-sent events (http://, https://)")
    try:
        return kind(push, auth=token if token is not None and same_server(push, feed) else None)
    except ValueError as error:
        raise ValueError(f"--push: {error}") from error


def same_server(push: str, feed: str) -> bool:
    """Whether two URLs name the same host and port, and both or neither are encrypted."""
    try:
        ours, theirs = (httpx.URL(re.sub("^ws", "http", url, flags=re.IGNORECASE)) for url in (push, feed))
    except (httpx.InvalidURL, UnicodeError):  # the listener says so
        return False
    return origin_of(ours) == origin_of(theirs)


async def until_signalled(follow: Callable[[], Awaitable[None]], command: Command | None = None) -> Exit:
    """Run `follow` until it ends or SIGINT or SIGTERM cancels it.

    Args:
        follow: Runs the consumer.
        command: Gets `SHUTDOWN_TIMEOUT` for the current message, and is killed by a second signal.

    Returns:
        `Exit.DONE`, or the exit code of the signal.

    Raises:
        Exception: What `follow` raised, without a group around it.
    """
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
    """End at the second signal, even while a write to standard output blocks or a command does not end."""
    if command is not None:
        command.kill()
    os._exit(code)
