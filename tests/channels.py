"""What listeners report to in tests, and servers of a few bytes to which they connect."""

import contextlib
import socket
import threading

import anyio

from push_to_poll_client._types import Push

HOST = "127.0.0.1"

SOON = 9.0
"""Seconds that no test needs; less than the default timeouts, which must not help."""


class TimedChannel:
    """Writes down what it is told, and when."""

    def __init__(self):
        self.began = anyio.current_time()
        self.events = []
        self.errors = []
        self.state = self.registered_until = None

    def up(self):
        self._note("up")

    def down(self, error=None):
        self._note("down")
        self.errors.append(error)

    def wake(self, push=None, /):
        self._note(push)

    def poll(self):
        self._note("poll")

    def registered(self, until, /):
        self.registered_until = until

    async def save(self, state, /):
        self.state = state

    def _note(self, event):
        self.events.append((round(anyio.current_time() - self.began, 3), event))

    @property
    def pushes(self):
        return [event for _, event in self.events if isinstance(event, Push)]


class Channel:
    """Writes down what it is told; a test waits for what it wants to see."""

    def __init__(self):
        self.events = []
        self.error = self.state = self.registered_until = None
        self._changed = anyio.Event()

    def up(self):
        self._note("up")

    def down(self, error=None):
        self.error = error
        self._note("down")

    def wake(self, push=None, /):
        self._note(push)

    def poll(self):
        self._note("poll")

    def registered(self, until, /):
        self.registered_until = until

    async def save(self, state, /):
        self.state = state

    def _note(self, event):
        self.events.append(event)
        self._changed.set()
        self._changed = anyio.Event()

    async def saw(self, *events):
        while self.events[: len(events)] != list(events):
            assert len(self.events) < len(events), self.events
            await self._changed.wait()

    async def sees(self, event, *, after):
        """Wait for one event, whatever else there is between the other and it."""
        while event not in self.events[self.events.index(after) if after in self.events else len(self.events) :]:
            await self._changed.wait()


@contextlib.asynccontextmanager
async def listening(listener):
    """Listens until the end of the block, and stops soon then."""
    channel = Channel()
    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.listen, channel)
            yield channel
            tasks.cancel_scope.cancel()
            stopped = anyio.current_time()
    assert anyio.current_time() - stopped < SOON / 2


class Raw:
    """Hands each connection to a function, in a thread. Whatever is still open is closed at the end."""

    def __init__(self, treat):
        self._treat = treat
        self.accepted = []

    def __enter__(self):
        self._listening = socket.socket()
        # Small, so that a client is soon held up by a server that does not read.
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
                self.accepted.append(accepted)
                with contextlib.suppress(OSError):
                    self._treat(accepted, len(self.accepted))

    def __exit__(self, *_):
        self._listening.shutdown(socket.SHUT_RDWR)
        for accepted in self.accepted:
            with contextlib.suppress(OSError):
                accepted.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for opened in (self._listening, *self.accepted):
            opened.close()


def is_closed(accepted):
    """Read what is left. Whether the other side closed, rather than forgot, its end."""
    accepted.settimeout(SOON / 2)
    with contextlib.suppress(ConnectionResetError):
        while accepted.recv(1 << 20):
            pass
    return True
