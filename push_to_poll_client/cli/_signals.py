"""How does a signal end a command? The first in an orderly way, the second at once."""

import os
import signal
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskStatus

from push_to_poll_client.cli._exec import Command
from push_to_poll_client.cli._exit import Exit

__all__ = ["SHUTDOWN_TIMEOUT", "until_signalled"]

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
                    _leave(code, command)
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


def _leave(code: Exit, command: Command | None) -> None:
    """Asked twice: output that nobody reads must not hold us, nor a command that does not end."""
    if command is not None:
        command.kill()
    os._exit(code)
