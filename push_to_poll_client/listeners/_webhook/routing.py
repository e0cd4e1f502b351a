"""Wake the consumers of an authentic request, each in its own event loop.

A request rejected by a limit may have been a push. From the first such request until `FLOOD_QUIET_TIME` after the
last, each consumer's channel is down, so the consumer polls at its degraded interval.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from itertools import islice

import anyio

from push_to_poll_client._event_loop import EventLoop
from push_to_poll_client._protocols import Channel
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_str
from push_to_poll_client.listeners._hints import HintReader, parse_path, strings_at
from push_to_poll_client.listeners._webhook.counters import WebhookJournal
from push_to_poll_client.listeners._webhook.types import (
    EVERYONE,
    UNKNOWN,
    Control,
    Recipient,
    Route,
    WebhookRequest,
)

# Until then the consumer polls at its degraded interval, 10 s by default: the latency of a rejected push.
FLOOD_QUIET_TIME = 30.0
"""Seconds without a rejected request after which a flood is over."""


class ForwardedChannel:
    """Forwards everything to a channel except `up` and `down`, which subclasses define."""

    def __init__(self, channel: Channel) -> None:
        self.wake = channel.wake
        self.request_poll = channel.request_poll
        self.subscribed = channel.subscribed
        self.save = channel.save
        self.while_owner = channel.while_owner
        self._channel = channel

    @property
    def missed_in_a_row(self) -> int:
        return self._channel.missed_in_a_row

    @property
    def state(self) -> str | None:
        return self._channel.state


class WebhookSubscriber(ForwardedChannel):
    """One consumer that listens to the webhook, with its channel. Runs in the consumer's event loop."""

    # The channel is up while the server is believed to push and no flood hides pushes. Only the consumer that
    # keeps the subscription has a `router`, to tell the others if the server pushes.

    def __init__(self, channel: Channel, router: "PushRouter | None" = None) -> None:
        super().__init__(channel)
        self._router = router
        self._loop = EventLoop()
        self._context = copy_context()  # has the name of this consumer, for the log
        self._is_pushing = False
        self._flooded = False
        self._has_rejected = False
        self._flood_started = anyio.Event()

    def up(self) -> None:
        self._is_pushing = True
        if self._flooded:
            self._channel.request_poll()
        else:
            self._channel.up()
        if self._router is not None:
            self._router.broadcast_state(self, None)

    def down(self, error: BaseException | None = None) -> None:
        self._is_pushing = False
        self._channel.down(error)
        if self._router is not None:
            self._router.broadcast_state(self, error, up=False)

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call a function in this consumer's event loop, unless the loop has ended. Thread-safe."""
        self._loop.call(partial(self._context.run, call))

    def note_rejected(self) -> None:
        """Note that a rejected request may have been a push. Thread-safe."""
        if not self._has_rejected:
            self._has_rejected = True
            self.call_soon(self._start_flood)

    async def watch_floods(self, journal: WebhookJournal) -> None:
        """Log each flood, and report it to the channel, until cancelled."""
        while True:
            await self._flood_started.wait()
            self._flooded = True
            self._channel.down(journal.log_flood())
            while self._has_rejected:
                self._has_rejected = False
                self._flood_started = anyio.Event()
                await anyio.sleep(FLOOD_QUIET_TIME)
            self._flooded = False
            if self._is_pushing:
                self._channel.up()

    def _start_flood(self) -> None:
        # The flood may have ended before the event loop calls this.
        if self._has_rejected:
            self._flood_started.set()


MAX_NAMES = 1_000
"""Names read from a push. A push with more names is for all subscribers."""


class PushRouter:
    """Finds the consumers that an authentic request is for. Thread-safe."""

    # No failure of the caller's functions loses a push: then all consumers poll. `control` receives the server's
    # messages about the subscription. Without a subscription, it is None, and the server is believed to push
    # always.

    def __init__(
        self,
        hints: HintReader[WebhookRequest, Push | Control],
        route: Route | None,
        *,
        control: Callable[[Control], None] | None,
        journal: WebhookJournal,
    ) -> None:
        self._hints = hints
        self._route = route
        self._control = control
        self._journal = journal
        self._is_pushing = control is None
        self._subscribers: tuple[tuple[str | None, WebhookSubscriber], ...] = ()
        self._lock = threading.Lock()

    @contextmanager
    def joined(self, subscriber: WebhookSubscriber, name: str | None) -> Iterator[None]:
        """Let a subscriber listen for `name` (None: all names) during the block. In its event loop."""
        entry = (name, subscriber)
        with self._lock:
            self._subscribers = (*self._subscribers, entry)
            is_pushing = self._is_pushing
        try:
            if is_pushing:
                subscriber.up()
            yield
        finally:
            with self._lock:
                self._subscribers = tuple(one for one in self._subscribers if one is not entry)

    def find(self, recipients: Iterable[Recipient] = (EVERYONE,)) -> list[WebhookSubscriber]:
        """Return the subscribers of these recipients, and always those that listen for all names."""
        wanted = {None, *recipients}
        return [one for name, one in self._subscribers if name in wanted or EVERYONE in wanted]

    def note_rejected(self) -> None:
        for subscriber in self.find():
            subscriber.note_rejected()

    def broadcast_state(self, source: WebhookSubscriber, error: BaseException | None, *, up: bool = True) -> None:
        """Tell all subscribers except `source` that the server pushes, or does not."""
        with self._lock:
            self._is_pushing = up
        for subscriber in self.find():
            if subscriber is not source:
                subscriber.call_soon(subscriber.up if up else partial(subscriber.down, error))

    def recipients_of(self, request: WebhookRequest) -> Sequence[Recipient]:
        """Return the recipients of a request: at least one, without duplicates."""
        names = self._names_in(request)
        if not names:
            return (EVERYONE,)
        heard = {name for name, _ in self._subscribers}
        known = [name for name in names if name in heard]
        self._journal.count("unknown_names", len(names) - len(known))
        return known or (UNKNOWN,)

    def _names_in(self, request: WebhookRequest) -> Sequence[str]:
        """Return the distinct names that a request is for; empty if it is for all."""
        try:
            names = None if self._route is None else self._route(request)
            first = [names] if isinstance(names, str) else list(islice(names or (), MAX_NAMES + 1))
            for name in first:
                check_str("a name", name)
        except Exception as error:  # noqa: BLE001  # the caller's function may fail on a stranger's text
            self._journal.log_failure("route (the push wakes all listeners of the webhook)", error)
            return ()
        return tuple(dict.fromkeys(first)) if len(first) <= MAX_NAMES else ()

    def dispatch(self, request: WebhookRequest, recipients: Sequence[Recipient]) -> bool:
        """Act on a new authentic request; return True if a subscriber got it."""
        push = self._hints.read(request, self._journal.name)
        if push is None:
            self._journal.count("ignored")
            return False
        subscribers = self.find(recipients)
        if isinstance(push, Control):
            self._journal.count("controls")
            if self._control is not None and push is not Control.MISSED:
                self._control(push)
                return True
            for subscriber in subscribers:
                subscriber.request_poll()
        else:
            self._journal.count("woken" if subscribers else "unheard")
            for subscriber in subscribers:
                subscriber.wake(push)
        return bool(subscribers)


def names_at(path: str) -> Route:
    """Return a route that reads the names at a path in the body. Without names, the request is for all."""
    steps = parse_path(path)

    def names(request: WebhookRequest) -> list[str]:
        try:
            return strings_at(request.json(), steps, limit=MAX_NAMES + 1)
        except ValueError:
            return []

    return names
