"""`tail --exec`: run a command for each message; exit code 0 means processed.

The command gets the message only on standard input. No text from a server becomes an argument or an environment
variable, and no shell runs. Standard input is an unnamed file, not a pipe, so the command need not read it.

The command runs in its own session. Ctrl-C does not reach it, so the current message can finish. On a timeout, all
processes that the command started are ended too.
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

# A stop gives the current message 10 s before that: below the 30 s of Kubernetes and the 90 s of systemd.
TERM_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""

_CHECK_INTERVAL = 0.02  # seconds between checks for remaining processes of an ended command


class CommandFailed(Exception):
    """The command failed, was killed, or took too long."""


class CommandNotStarted(CommandFailed):
    """The command could not be started. This does not depend on the message."""


class Command:
    """Handler that runs a command for each message, one at a time, without a shell."""

    # The command inherits standard output, standard error, the directory and the environment, without `secrets`
    # (G12). After `timeout` the process group gets SIGTERM, then SIGKILL.

    def __init__(self, typed: str, *, timeout: float, secrets: Collection[str] = ()) -> None:
        check_number("--exec-timeout", timeout, above_zero=True)
        self._argv = _argv(typed)
        self._timeout = timeout
        self._environment = {name: value for name, value in os.environ.items() if name not in secrets}
        self._in_flight: anyio.CancelScope | None = None
        self._finish_until = math.inf
        self._process: Process | None = None

    async def __call__(self, message: Message) -> None:
        """Run the command with the message on its standard input."""
        # A cancellation waits for the current run until the deadline of `finish_until()`.
        await checkpoint_if_cancelled()
        with anyio.CancelScope(shield=True, deadline=self._finish_until) as self._in_flight:
            await self._run(json_line(message))
            return
        await anyio.sleep_forever()  # the deadline has passed: let the cancellation arrive here

    def finish_until(self, deadline: float) -> None:
        """Set the deadline of the current run, on the event loop's clock."""
        self._finish_until = deadline
        if self._in_flight is not None:
            self._in_flight.deadline = deadline

    def kill(self) -> None:
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
            raise CommandNotStarted(f"cannot start {quoted(self._argv[0])}: {error.strerror}") from error

    def _failure(self, process: Process, *, overran: bool) -> str:
        code = process.returncode
        if code is None:
            return f"did not end within {self._timeout:g} s and cannot be killed"
        if overran:
            return f"did not end within {self._timeout:g} s and was terminated"
        return f"exited with {code}" if code > 0 else f"was killed by {_signal_name(-code)}"


def _argv(typed: str) -> list[str]:
    try:
        argv = shlex.split(typed)
    except ValueError as error:
        raise ValueError(f"--exec cannot be split into words: {error}; check the quotes") from None
    if not argv:
        raise ValueError("--exec is empty; give it a command")
    if (found := shutil.which(argv[0])) is None:
        what = "is not executable" if os.path.exists(argv[0]) else "was not found"  # noqa: PTH110  # any string
        raise ValueError(f"--exec: {quoted(argv[0])} {what}; give the name of a program on the PATH, or a path")
    return [found, *argv[1:]]


async def _terminate(process: Process) -> None:
    """Send SIGTERM to the process group, and SIGKILL after the grace period."""
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
    """Signal the process group; return True if a process of the group is left."""
    # The system does not reuse the number of a group that still has a process.
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process became another user's, by sudo for instance
        return True
    return True
