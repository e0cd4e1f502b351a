"""Channels that listeners report to in tests, and small servers to connect to."""

import contextlib
import socket
import sys
import threading

import anyio
import pytest

from push_to_poll_client._types import Push
from tests.support.forms import GUARD

HOST = "127.0.0.1"


class TimedChannel:
    """Record each report of a listener, with its time."""

    missed_in_a_row = 0

    def __init__(self):
        self.began = anyio.current_time()
        self.events = []
        self.errors = []
        self.state = self.subscribed_until = None

    def up(self):
        self._note("up")

    def down(self, error=None):
        self._note("down")
        self.errors.append(error)

    def wake(self, push=None, /):
        self._note(push)

    def request_poll(self):
        self._note("poll")

    def subscribed(self, until, /):
        self.subscribed_until = until

    async def while_owner(self, work, /):
        await work()

    async def save(self, state, /):
        self.state = state

    def _note(self, event):
        self.events.append((round(anyio.current_time() - self.began, 3), event))

    @property
    def pushes(self):
        return [event for _, event in self.events if isinstance(event, Push)]


class Channel:
    """Record each report of a listener, and let a test wait for one."""

    missed_in_a_row = 0

    def __init__(self):
        self.events = []
        self.error = self.state = self.subscribed_until = None
        self._changed = None

    def up(self):
        self._note("up")

    def down(self, error=None):
        self.error = error
        self._note("down")

    def wake(self, push=None, /):
        self._note(push)

    def request_poll(self):
        self._note("poll")

    def subscribed(self, until, /):
        self.subscribed_until = until

    async def while_owner(self, work, /):
        await work()

    async def save(self, state, /):
        self.state = state

    def _note(self, event):
        self.events.append(event)
        if self._changed is not None:  # an event for each push of a flood would take longer than the pushes
            self._changed.set()
            self._changed = None

    async def _change(self):
        self._changed = self._changed or anyio.Event()
        await self._changed.wait()

    async def until(self, true):
        """Wait until a condition holds for the events; the list of events grows meanwhile."""
        while not true(self.events):
            await self._change()

    async def saw(self, *events):
        while self.events[: len(events)] != list(events):
            assert len(self.events) < len(events), self.events
            await self._change()

    async def sees(self, event, *, after):
        """Wait for one event, and ignore other events before it."""
        while event not in self.events[self.events.index(after) if after in self.events else len(self.events) :]:
            await self._change()


CLOSING = ("_http.transport", "listeners._base")
"""Modules that wait some time for a close."""


@contextlib.asynccontextmanager
async def listening(listener):
    """Listen until the end of the block.

    A close that waits for the other side, or for a lock, waits longer than the guard. So the test fails.
    """
    channel = Channel()
    with pytest.MonkeyPatch.context() as patch, anyio.fail_after(GUARD):
        for name in CLOSING:
            if module := sys.modules.get(f"push_to_poll_client.{name}"):
                patch.setattr(module, "CLOSE_TIMEOUT", 2 * GUARD)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.listen, channel)
            yield channel
            tasks.cancel_scope.cancel()
            stopped = anyio.current_time()
    assert anyio.current_time() - stopped < GUARD


class Raw:
    """Pass each connection to a function, in a thread. Close all connections at the end."""

    def __init__(self, treat):
        self._treat = treat
        self._changed = threading.Condition()
        self.accepted = []

    def __enter__(self):
        self._listening = socket.socket()
        # Small, so that a server that does not read soon blocks the client.
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listening.bind((HOST, 0))
        self._listening.listen()
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        return self

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = self._listening.accept()
                with self._changed:
                    self.accepted.append(accepted)
                    self._changed.notify_all()
                with contextlib.suppress(OSError):
                    self._treat(accepted, len(self.accepted))

    def first(self):
        """Wait for the first connection: a client may close it before this thread accepts it."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.accepted, GUARD)
            return self.accepted[0]

    def __exit__(self, *_):
        self._listening.shutdown(socket.SHUT_RDWR)
        for accepted in self.accepted:
            with contextlib.suppress(OSError):
                accepted.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for opened in (self._listening, *self.accepted):
            opened.close()


def is_closed(accepted):
    """Read the rest. Return True if the other side closed its end."""
    accepted.settimeout(GUARD)
    with contextlib.suppress(ConnectionResetError):
        while accepted.recv(1 << 20):
            pass
    return True
