"""`push-to-poll tail`: follow a feed, one JSON line or one run of a command for each message."""

import argparse
import functools
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import httpx
from anyio.abc import TaskStatus
from tenacity import AsyncRetrying, stop_after_attempt

from push_to_poll_client import (
    Consumer,
    HTTPFeed,
    Listener,
    MemoryStore,
    Message,
    PollResult,
    SQLiteStore,
    SSEListener,
    Throttled,
    WebSocketListener,
)
from push_to_poll_client._consumer import DEFAULT_RETRY
from push_to_poll_client._options import FailurePolicy, OnFailure
from push_to_poll_client.cli._exec import Command, CommandNotStarted
from push_to_poll_client.cli._output import Exit, ReaderGone, UsageError, write_line
from push_to_poll_client.cli._parser import Commands
from push_to_poll_client.cli._rewind import check_cursor
from push_to_poll_client.cli._webhook import ServedWebhook, add_webhook, environment_variable, webhook_from_options

__all__ = [
    "SHUTDOWN_TIMEOUT",
    "add_to",
    "listener_for",
    "same_server",
    "until_signalled",
]


_LISTENER_TYPES: dict[str, Callable[..., Listener]] = {
    "ws": WebSocketListener,
    "wss": WebSocketListener,
    "http": SSEListener,
    "https": SSEListener,
}
_ENCRYPTED_SCHEMES = {"https", "wss"}


def listener_for(push: str, *, feed: str, token: str | None) -> Listener:
    """The listener for a push channel.

    Args:
        push: Its URL; the scheme says which kind it is.
        feed: The URL of the feed.
        token: The feed's, which goes to the same server alone (G12); `None`: there is none.

    Raises:
        ValueError: The URL is none of a push channel. Nothing of it is in the text.
    """
    kind = _LISTENER_TYPES.get(push.partition(":")[0].lower())
    if kind is None:
        raise ValueError("--push must be a websocket (ws://, wss://) or server-sent events (http://, https://)")
    try:
        return kind(push, token=token if token is not None and same_server(push, feed) else None)
    except ValueError as error:
        raise ValueError(f"--push: {error}") from error


def same_server(push: str, feed: str) -> bool:
    """Whether two URLs name the same host and port, and both or neither are encrypted.

    Raises:
        ValueError: One of them is no URL.
    """
    return _server(push) == _server(feed)


def _server(url: str) -> tuple[bool, str, int | None]:
    try:
        parsed = httpx.URL(url)
        host = parsed.host
    except (httpx.InvalidURL, UnicodeError):  # whose text may quote a piece of a password
        raise ValueError("it is no URL") from None
    return parsed.scheme in _ENCRYPTED_SCHEMES, host, parsed.port


SHUTDOWN_TIMEOUT = 10.0
"""Seconds that the message in hand gets to finish after the first signal: the library's default."""


async def until_signalled(follow: Callable[[], Awaitable[None]], command: Command | None = None) -> Exit:
    """Run `follow` until it ends or SIGINT or SIGTERM cancels it.

    Args:
        follow: What is run.
        command: Gets `SHUTDOWN_TIMEOUT` for the message in hand, and is killed by a second signal.

    Returns:
        `Exit.DONE`, or which signal it was.

    Raises:
        Exception: What `follow` raised, without a group around it.
    """
    code = Exit.DONE
    error: Exception | None = None

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

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as body:
            await tasks.start(watch, body)
            try:
                await follow()
            except Exception as caught:  # noqa: BLE001  # raised below, without a group around it
                error = caught
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error
    return code


def _exit_now(code: Exit, command: Command | None) -> None:
    """Asked twice: output that nobody reads must not hold us, nor a command that does not end."""
    if command is not None:
        command.kill()
    os._exit(code)


DEGRADED_INTERVAL = 10.0
"""Seconds between polls while a push channel is down, unless `--interval` is shorter: the library's default."""

ONCE_TIMEOUT = 60.0
"""Seconds that `--once` waits when the server asks to be left alone; beyond that, whoever runs it decides."""

EXEC_TIMEOUT = 60.0
"""Seconds that a command may take for one message: long for a slow API call, and one that hangs is known in a
minute."""

EXEC_ATTEMPTS = 5
"""Those of the library's default, with its delays: they outlive a restart of what the command calls."""


POLICIES: Final[dict[str, FailurePolicy]] = {"stop": "stop", "dead-letter": "dead_letter", "skip": "skip"}
"""What is typed for what becomes of a message."""


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
    _add_feed(parser.add_argument)
    add_webhook(parser.add_argument)
    _add_exec(parser.add_argument)
    _add_policy(parser.add_argument)
    parser.add_argument("-v", "--verbose", action="count", help="log what is done; twice: in detail")


def _add_feed(add: Callable[..., object]) -> None:
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
    add("--once", action="store_true", help="stop at the end of the feed")
    add(
        "--interval",
        metavar="S",
        type=float,
        default=60.0,
        help="longest quiet time in seconds before polling anyway (default: 60)",
    )
    add(
        "--wait",
        metavar="S",
        type=float,
        help="let the server hold its answer for this many seconds (long polling)",
    )
    add(
        "--token-env",
        metavar="NAME",
        help="the environment variable with a bearer token for the feed, and for pushes from the same server",
    )


def _add_exec(add: Callable[..., object]) -> None:
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


def _add_policy(add: Callable[..., object]) -> None:
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


def run(options: argparse.Namespace) -> int:
    """Follow the feed until its end (`--once`), a signal, or an error.

    Raises:
        PushToPollError: What ended it.
        UsageError: An argument has no meaning.
    """
    try:
        command = _command(options)
        webhook = webhook_from_options(options)
        consumer = _consumer(options, command, webhook)
    except (TypeError, ValueError) as error:  # of the library's own constructors
        raise UsageError(str(error)) from error
    code = Exit.DONE
    try:
        follow = functools.partial(_run_once, consumer) if options.once else consumer.run
        if webhook is not None:
            follow = functools.partial(webhook.serve, consumer.run)
        code = anyio.run(until_signalled, follow, command)
    except* ReaderGone:
        pass
    return code


def _consumer(options: argparse.Namespace, command: Command | None, webhook: ServedWebhook | None) -> Consumer:
    if options.once and (options.push or webhook is not None):
        raise ValueError("--once does not wait for pushes, leave out --push and --webhook")
    check_cursor("--start", options.start)
    token = _token(options.token_env)
    listeners = [listener_for(url, feed=options.url, token=token) for url in options.push]
    return Consumer(
        HTTPFeed(options.url, auth=token, max_wait=options.wait),
        store=SQLiteStore(options.state) if options.state is not None else MemoryStore(),
        listeners=listeners if webhook is None else [*listeners, webhook.listener],
        process=command or write_line,
        fallback_interval=options.interval,
        degraded_interval=min(DEGRADED_INTERVAL, options.interval),
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
    """A command may go better in a second. A line that cannot be written will not."""
    if options.exec is None:
        return None
    attempts = EXEC_ATTEMPTS if options.exec_attempts is None else options.exec_attempts
    if attempts < 1:
        raise ValueError(f"--exec-attempts must be at least 1, not {attempts}")
    return DEFAULT_RETRY.copy(stop=stop_after_attempt(attempts))


def _on_failure(options: argparse.Namespace) -> OnFailure:
    """A command that cannot be started is no failure of a message: each would be skipped, or a dead letter."""
    policy = POLICIES.get(options.on_failure)
    if policy is None:
        raise ValueError(f"--on-failure must be {', '.join(POLICIES)}, one of them")
    if policy == "dead_letter" and options.state is None:
        raise ValueError("--on-failure dead-letter needs --state, the file in which dead letters are kept")

    def decide(_: Message, error: Exception) -> FailurePolicy:
        return "stop" if isinstance(error, CommandNotStarted) else policy

    return decide


def _token(name: str | None) -> str | None:
    return None if name is None else environment_variable("--token-env", name, "token")


async def _run_once(consumer: Consumer) -> None:
    async with consumer:
        while not (result := await consumer.poll_now(timeout=ONCE_TIMEOUT)).caught_up:
            _refuse_to_wait(result)


def _refuse_to_wait(result: PollResult) -> None:
    """Until a message may be tried again: `poll_now()` waits for that, but not beyond its timeout."""
    if result.postponed is not None and result.postponed > ONCE_TIMEOUT:
        raise Throttled(
            f"a message that failed may be tried again in {result.postponed:.0f} s, and those after it wait too; "
            "run this again then",
            until=anyio.current_time() + result.postponed,
        )
