"""The errors, one tree. A class exists only where a caller would act differently.

    PushToPollError
    ├── FeedError                  a fetch failed; tried again with backoff, the cursor has not moved
    │   ├── FeedRefused            the server refuses this client (401, 404, …): tried again, slowly
    │   ├── PagesChanged           the pages changed under the walk: from the saved cursor again, at once
    │   ├── CursorExpired          the feed no longer knows the cursor: stops the consumer
    │   └── FeedGone               the feed is gone for good: stops the consumer
    ├── Throttled                  poll_now() alone: the poll may not start within its timeout
    ├── ProcessError               a message failed for good: stops the consumer
    ├── HandlerDecision            raised by a handler to decide itself what becomes of its message
    │   ├── RetryMessage           try it again later
    │   ├── DeadLetterMessage      keep it as a dead letter, now
    │   ├── SkipMessage            go past it, now
    │   └── StopConsumer           stop, now
    ├── DecodeError                an entry or its data cannot be read: fails without a retry
    ├── ContentChanged             an id came back with other content: fails without a retry
    ├── ListenerError              a push channel is broken for good: stops the consumer
    ├── SubscriptionGone           the server has dropped a subscription: it is created anew
    └── StoreError                 the store cannot be read or written: stops the consumer
        ├── StoreUnavailable       it may pass, as a full disk does: the consumer waits for it
        ├── StoreBusy              somebody else owns the name
        ├── StoreMismatch          the name belongs to another feed
        └── OwnershipLost          somebody else claimed the name meanwhile; nothing was written

Wrong arguments are `TypeError` and `ValueError`, at construction.
"""

from push_to_poll_client._validation import check_number


class PushToPollError(Exception):
    """The root: every error that this library raises on its own account."""


class FeedError(PushToPollError):
    """A fetch failed. The poll failed with it: cursor unmoved, wakes kept, tried again with backoff.

    Args:
        message: What was seen, where (without secrets), and what to do.
        retry_after: Seconds that the server asks to be left alone, counted from now; `None`: it did not say.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class FeedRefused(FeedError):
    """The server refuses this client, and asking again will not help until somebody acts.

    Polls go on all the same, at the slowest backoff: credentials come back, deployments end.
    """


class PagesChanged(FeedError):
    """The pages changed under the walk: what was fetched since the saved cursor has to be fetched again."""


class CursorExpired(FeedError):
    """The feed no longer knows the cursor. Messages may be missing, so the consumer stops and says so.

    Args:
        message: What was seen, where, and what to do.
        start: The cursor that the feed offers to start from, or `None`.
        retry_after: As for `FeedError`.
    """

    def __init__(self, message: str, *, start: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.start = start


class FeedGone(FeedError):
    """The feed is gone for good (RFC 9110 §15.5.11)."""


class Throttled(PushToPollError):
    """A poll may not start within the `timeout` of `poll_now()`.

    Args:
        message: Who asks to wait and for how long.
        until: When a poll may start, on the clock of `anyio.current_time()`.
        retry_after: Seconds until then, counted from when it was raised.
    """

    def __init__(self, message: str, *, until: float, retry_after: float) -> None:
        super().__init__(message)
        self.until = until
        self.retry_after = retry_after


class ProcessError(PushToPollError):
    """A message failed for good. It and all after it are not settled; the cursor stands before it.

    The cause is the handler's last error, or the `DecodeError`.

    Args:
        message: What happened and what to do.
        id: The id of the message that failed.
        dedupe_key: Its dedupe key.
    """

    def __init__(self, message: str, *, id: str, dedupe_key: str) -> None:
        super().__init__(message)
        self.id = id
        self.dedupe_key = dedupe_key


class HandlerDecision(PushToPollError):
    """What a handler raises to say itself what becomes of its message, in place of `retry` and `on_failure`.

    Raise one of its subclasses, `from` the error that led to it if there is one: that is kept too.

    Args:
        reason: For log, status and dead letter.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "the handler said so")


class RetryMessage(HandlerDecision):
    """Try the message again later, however often it was tried; as for a service that says `Retry-After`.

    Args:
        reason: For log and status.
        after: Seconds to wait.

    Raises:
        TypeError: `after` is no number.
        ValueError: `after` is below 0 or not finite.
    """

    def __init__(self, reason: str = "", *, after: float) -> None:
        check_number("after", after)
        super().__init__(reason)
        self.after = after


class DeadLetterMessage(HandlerDecision):
    """Keep the message as a dead letter, now: trying it again would not help."""


class SkipMessage(HandlerDecision):
    """Go past the message, now: it is of no interest after all, and that is worth a line in the log."""


class StopConsumer(HandlerDecision):
    """Stop the consumer before the message, now."""


class ContentChanged(PushToPollError):
    """A message came back with other content than the one that was processed under its dedupe key."""


class DecodeError(PushToPollError):
    """An entry of the feed, or its data, cannot be read."""


class ListenerError(PushToPollError):
    """A push channel is broken for good: trying again cannot help."""


class SubscriptionGone(PushToPollError):
    """The server knows a subscription no more, or does not want it as it is. What renews one raises it."""


class StoreError(PushToPollError):
    """The store cannot be opened, read or written. Nothing was written."""


class StoreUnavailable(StoreError):
    """The store cannot be used now, which may pass: a full disk, a lock of another program. Nothing was written.

    A consumer that runs waits for it with backoff, and keeps what is not committed. `poll_now()` raises it.
    """


class StoreBusy(StoreError):
    """The name has an owner already: another process, or another consumer in this one."""


class StoreMismatch(StoreError):
    """The name is bound to another feed, whose cursor would mean nothing here.

    If it is the same feed at another address, `push-to-poll rebind` or the store's `rebind()` binds the name to
    that.

    Args:
        message: Both feeds, and what to do.
        bound_to: The identity of the feed that the name is bound to; `None`: the store does not say.
    """

    def __init__(self, message: str, *, bound_to: str | None = None) -> None:
        super().__init__(message)
        self.bound_to = bound_to


class OwnershipLost(StoreError):
    """The name was claimed by somebody else since this session began; nothing was written."""
