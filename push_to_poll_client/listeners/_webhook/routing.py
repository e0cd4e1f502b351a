"""Which consumers an authentic request wakes, each in its own event loop."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice

import anyio

from push_to_poll_client._event_loop import EventLoop
from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push
from push_to_poll_client.listeners._hints import HintReader, parse_path, strings_at
from push_to_poll_client.listeners._webhook.counters import ErrorLog, WebhookStats
from push_to_poll_client.listeners._webhook.types import Control, Hint, Route, WebhookRequest

__all__ = [
    "FLOOD_QUIET_TIME",
    "MAX_NAMES",
    "ManagingSubscriber",
    "PushRouter",
    "WebhookSubscriber",
    "WebhookSubscribers",
    "names_at",
]


FLOOD_QUIET_TIME = 30.0
"""Seconds without a refused request after which a flood is over. Until then the consumer polls at its degraded
interval, 10 s by default, so that a push that was refused costs that much latency and no more."""


class WebhookSubscriber:
    """One consumer that listens, and the channel that it hears by.

    Made in the consumer's event loop, to which all of it belongs but what says otherwise. The channel is up while
    the server pushes, as far as anybody knows, and no flood hides pushes.

    Args:
        channel: Of the consumer.
    """

    def __init__(self, channel: Channel) -> None:
        self.wake = channel.wake
        self.poll = channel.poll
        self.registered = channel.registered
        self.save = channel.save
        self._channel = channel
        self._loop = EventLoop()
        self._is_pushing = False
        self._flooded = False
        self._has_rejected = False
        self._flood_started = anyio.Event()

    @property
    def state(self) -> str | None:
        """What was saved."""
        return self._channel.state

    def up(self) -> None:
        """The server pushes."""
        self._is_pushing = True
        if self._flooded:
            self._channel.poll()
        else:
            self._channel.up()

    def down(self, error: BaseException | None = None) -> None:
        """The server does not push."""
        self._is_pushing = False
        self._channel.down(error)

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call it in the event loop of this consumer, from any thread; not if that has ended."""
        try:
            self._loop.call(call)
        except RuntimeError:
            return

    def note_rejected(self) -> None:
        """A request was refused that may have been a push. From any thread."""
        if not self._has_rejected:
            self._has_rejected = True
            self.call_soon(self._start_flood)

    async def watch_floods(self, error: PushToPollError) -> None:
        """Report floods, until cancelled.

        Args:
            error: What one means.
        """
        while True:
            await self._flood_started.wait()
            self._flooded = True
            self._channel.down(error)
            while self._has_rejected:
                self._has_rejected = False
                self._flood_started = anyio.Event()
                await anyio.sleep(FLOOD_QUIET_TIME)
            self._flooded = False
            if self._is_pushing:
                self._channel.up()

    def _start_flood(self) -> None:
        if self._has_rejected:
            self._flood_started.set()


class ManagingSubscriber(WebhookSubscriber):
    """That of the consumer which keeps the subscription: the others learn by it whether the server pushes.

    Args:
        channel: Of the consumer.
        audience: The others, too.
    """

    def __init__(self, channel: Channel, audience: "WebhookSubscribers") -> None:
        super().__init__(channel)
        self._subscribers = audience

    def up(self) -> None:
        """The server pushes."""
        super().up()
        self._subscribers.broadcast_state(self, None)

    def down(self, error: BaseException | None = None) -> None:
        """The server does not push."""
        super().down(error)
        self._subscribers.broadcast_state(self, error, up=False)


class WebhookSubscribers:
    """All who listen; from any thread.

    Args:
        subscribed: Whether somebody keeps a subscription, without which the server does not push.
    """

    def __init__(self, *, subscribed: bool) -> None:
        self._is_pushing = not subscribed
        self._by_name: dict[str | None, tuple[WebhookSubscriber, ...]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def joined(self, listening: WebhookSubscriber, name: str | None) -> Iterator[None]:
        """Have it listen for the length of the block.

        Args:
            listening: Who; in its event loop.
            name: For whom; `None`: for all.
        """
        with self._lock:
            self._by_name[name] = (*self._by_name.get(name, ()), listening)
            pushed = self._is_pushing
        try:
            if pushed:
                listening.up()
            yield
        finally:
            with self._lock:
                left = tuple(one for one in self._by_name[name] if one is not listening)
                self._by_name |= {name: left}
                if not left:
                    del self._by_name[name]

    def find(self, names: Iterable[str] | None) -> tuple[list[WebhookSubscriber], int]:
        """Those who listen for these names, and how many of the names nobody listens for; `None`: all."""
        with self._lock:
            if names is None:
                return [one for several in self._by_name.values() for one in several], 0
            found = [self._by_name.get(name, ()) for name in names]
            everybody = self._by_name.get(None, ())
        listening = [*everybody, *(one for several in found for one in several)]
        return listening, sum(not several for several in found)

    def note_rejected(self) -> None:
        """A request was refused that may have been a push."""
        for listening in self.find(None)[0]:
            listening.note_rejected()

    def broadcast_state(self, keeping: WebhookSubscriber, error: BaseException | None, *, up: bool = True) -> None:
        """The server pushes, or does not; all but the one that says so are told."""
        with self._lock:
            self._is_pushing = up
        for listening in self.find(None)[0]:
            if listening is not keeping:
                listening.call_soon(listening.up if up else partial(listening.down, error))


MAX_NAMES = 1_000
"""Names that are taken from a push; one with more is for all."""


class PushRouter:
    """Acts on authentic requests. Whatever the user's functions do, no push is lost by it.

    Args:
        name: The webhook's.
        hint: Makes a push of a request; `None`: each is one.
        to: Names those for whom it is; `None`: all.
        control: Told what the server says of the subscription; `None`: nobody keeps one, and it means a poll.
        audience: Who listens.
        tally: Where it is counted.
        faults: Where it is told when `to` fails.
        log: Where it is told when `hint` fails.
    """

    def __init__(
        self,
        name: str,
        *,
        hint: Hint | None,
        to: Route | None,
        control: Callable[[Control], None] | None,
        audience: WebhookSubscribers,
        tally: WebhookStats,
        faults: ErrorLog,
        log: logging.Logger,
    ) -> None:
        self._name = name
        self._hints = HintReader[WebhookRequest, Push | Control](hint, kinds=(Push, Control), log=log)
        self._route = to
        self._control = control
        self._subscribers = audience
        self._stats = tally
        self._error_log = faults

    def names_in(self, request: WebhookRequest) -> Sequence[str] | None:
        """For whom it is; `None`: all."""
        if self._route is None:
            return None
        try:
            return _check_names(self._route(request))
        except Exception as error:  # noqa: BLE001  # it is the user's, and a stranger's text may have got it there
            self._error_log.log_failure("to (its push is taken to be for all)", error)
            return None

    def dispatch(self, request: WebhookRequest, names: Sequence[str] | None) -> bool:
        """Do what it says.

        Args:
            request: Authentic, and no repetition.
            names: For whom it is.

        Returns:
            Whether anybody heard it.
        """
        said = self._hints.read(request, self._name)
        if said is None:
            self._stats.count("ignored")
            return False
        if isinstance(said, Control):
            self._stats.count("controls")
            return self._apply_control(said, names)
        return self._wake_subscribers(said, names)

    def _apply_control(self, control: Control, names: Sequence[str] | None) -> bool:
        if self._control is not None and control is not Control.MISSED:
            self._control(control)
            return True
        listening = self._find_subscribers(names)
        for one in listening:
            one.poll()
        return bool(listening)

    def _wake_subscribers(self, push: Push, names: Sequence[str] | None) -> bool:
        listening = self._find_subscribers(names)
        for one in listening:
            one.wake(push)
        self._stats.count("woken" if listening else "unheard")
        return bool(listening)

    def _find_subscribers(self, names: Sequence[str] | None) -> Sequence[WebhookSubscriber]:
        listening, unknown = self._subscribers.find(names)
        self._stats.count("unknown_names", unknown)
        return listening


def _check_names(names: Iterable[str] | None) -> list[str] | None:
    """Each once; a `str` is one name."""
    if names is None:
        return None
    first = [names] if isinstance(names, str) else list(islice(names, MAX_NAMES + 1))
    if not all(isinstance(name, str) for name in first):
        raise TypeError("names are texts")
    return list(dict.fromkeys(first)) if len(first) <= MAX_NAMES else None


def names_at(path: str) -> Route:
    """Reads names from the body. One that is no JSON, or has nothing there, is for all.

    Args:
        path: Where they stand, as "list_folder.accounts".

    Raises:
        ValueError: It is no path.
    """
    steps = parse_path(path)

    def names(request: WebhookRequest) -> list[str] | None:
        try:
            value = request.json()
        except ValueError:
            return None
        return strings_at(value, steps, limit=MAX_NAMES + 1) or None

    return names
