"""`tail --exec`: run a command for each message; its exit code says whether the message was processed.

The message is on the command's standard input and nowhere else: nothing that a server sent becomes an argument, a
variable, or a word of a shell, since there is no shell. Standard input is a file without a name, not a pipe: a
command may leave it unread, and nothing has to be written while the command runs.

The command runs in a session of its own. Ctrl-C does not reach it, so that the current message can finish; and the
processes that it started are ended with it when its time is up.
"""

import math
import os
import shlex
import shutil
import signal
import tempfile
from collections.abc import Collection

import anyio
from anyio.abc import Process
from anyio.lowlevel import checkpoint_if_cancelled

from push_to_poll_client import Message
from push_to_poll_client._validation import check_number, quoted
from push_to_poll_client.cli._output import json_line

TERM_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL. With the ten that a stop leaves the current message the sum is below the
thirty of Kubernetes and the ninety of systemd."""

_CHECK_INTERVAL = 0.02  # seconds between checks whether a process of an ended command is left


class CommandFailed(Exception):
    """The command reported that the message was not processed, or was killed, or took too long."""


class CommandNotStarted(CommandFailed):
    """The command could not be started. This does not depend on the message."""


class Command:
    """Processes a message by running a command. One at a time.

    Args:
        typed: The command and its arguments, split as a shell would, once; no shell sees them. It inherits
            standard output and error, the directory and the environment.
        timeout: Seconds that one run may take. Then its process group is terminated, 5 seconds later killed, and
            the message failed.
        secrets: Environment variables that the command does not get (G12).

    Raises:
        TypeError: `timeout` is not a number.
        ValueError: The command is empty, cannot be split, found or executed, or `timeout` is not above 0.
    """

    def __init__(self, typed: str, *, timeout: float, secrets: Collection[str] = ()) -> None:
        check_number("--exec-timeout", timeout, above_zero=True)
        self._argv = _argv(typed)
        self._timeout = timeout
        self._environment = {name: value for name, value in os.environ.items() if name not in secrets}
        self._in_flight: anyio.CancelScope | None = None
        self._finish_until = math.inf
        self._process: Process | None = None

    async def __call__(self, message: Message) -> None:
        """Run the command with the message on its standard input. Exit code 0 means processed.

        A cancellation waits for the current run, at most until the time given to `finish_until()`.

        Raises:
            CommandFailed: The command had another exit code, was killed by a signal, or took too long.
            CommandNotStarted: The command could not be started.
            DecodeError: The data of the message cannot be read.
        """
        await checkpoint_if_cancelled()
        with anyio.CancelScope(shield=True, deadline=self._finish_until) as self._in_flight:
            await self._run(json_line(message))
            return
        await anyio.sleep_forever()  # not processed: the cancellation that set the deadline goes on from here

    def finish_until(self, deadline: float) -> None:
        """End the current run at this time, on the event loop's clock, if it is not over by then."""
        self._finish_until = deadline
        if self._in_flight is not None:
            self._in_flight.deadline = deadline

    def kill(self) -> None:
        """End the current run at once, with the processes that it started."""
        if self._process is not None:
            _signal_group(self._process, signal.SIGKILL)

    async def _run(self, line: bytes) -> None:
        self._process = process = await self._start(line)
        try:
            with anyio.move_on_after(self._timeout):
                await process.wait()
        finally:
            if overran := process.returncode is None:
                await _terminate(process)
            self._process = None
        if overran or process.returncode:
            raise CommandFailed(f"{quoted(self._argv[0])} {self._failure(process, overran=overran)}")

    async def _start(self, line: bytes) -> Process:
        try:
            with tempfile.TemporaryFile() as stdin:
                stdin.write(line)
                stdin.seek(0)
                return await anyio.open_process(
                    self._argv,
                    stdin=stdin,
                    stdout=None,
                    stderr=None,
                    env=self._environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise CommandNotStarted(f"{quoted(self._argv[0])} could not be started: {error.strerror}") from error

    def _failure(self, process: Process, *, overran: bool) -> str:
        code = process.returncode
        if code is None:
            return f"did not end within {self._timeout:g} s, and cannot be ended"
        if overran:
            return f"did not end within {self._timeout:g} s and was ended"
        return f"exited with {code}" if code > 0 else f"was killed by {_signal_name(-code)}"


def _argv(typed: str) -> list[str]:
    try:
        argv = shlex.split(typed)
    except ValueError as error:
        raise ValueError(f"--exec cannot be split into words: {error}; mend its quotes") from None
    if not argv:
        raise ValueError("--exec is empty; name a command")
    if (found := shutil.which(argv[0])) is None:
        what = "is not executable" if os.path.exists(argv[0]) else "was not found"  # noqa: PTH110  # any string
        raise ValueError(f"--exec: {quoted(argv[0])} {what}; name a program on the PATH, or its path")
    return [found, *argv[1:]]


async def _terminate(process: Process) -> None:
    """Terminate the process and all that it started; after the grace kill the rest."""
    with anyio.CancelScope(shield=True):
        _signal_group(process, signal.SIGTERM)
        with anyio.move_on_after(TERM_GRACE):
            await process.wait()
            while _signal_group(process, 0):  # noqa: ASYNC110  # nothing tells when a group is empty
                await anyio.sleep(_CHECK_INTERVAL)
        _signal_group(process, signal.SIGKILL)
        with anyio.move_on_after(TERM_GRACE):
            await process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


def _signal_group(process: Process, number: int) -> bool:
    """Return whether the group has a process left. Its number is not used again as long as it has one."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process became another user's, by sudo for instance
        return True
    return True
