"""The exceptions of this library.

A class exists only if a caller would react differently to it.

    PushToPollError
    ├── FeedError                  a fetch failed; retried with backoff, the cursor is unchanged
    │   ├── FeedRefused            the server refuses this client (401, 404, …); retried slowly
    │   ├── PagesChanged           the pages changed while they were read; read again from the saved cursor
    │   ├── CursorExpired          the feed no longer knows the cursor; stops the consumer
    │   └── FeedGone               the feed was removed for good; stops the consumer
    ├── Throttled                  only from poll_now(): the poll may not start within the timeout
    ├── ProcessError               a message failed for good; stops the consumer
    ├── HandlerDecision            raised by a handler to decide about its message itself
    │   ├── RetryMessage           retry the message later
    │   ├── DeadLetterMessage      keep the message as a dead letter now
    │   ├── SkipMessage            skip the message now
    │   └── StopConsumer           stop the consumer now
    ├── DecodeError                an entry or its data cannot be read; fails without a retry
    ├── ContentChanged             an id came again with other content; fails without a retry
    ├── ListenerError              a push channel cannot work; stops the consumer
    ├── SubscriptionGone           the server has dropped a subscription; a new one is created
    └── StoreError                 the store cannot be read or written; stops the consumer
        ├── StoreUnavailable       may recover, like a full disk; the consumer waits
        │   └── CommitInDoubt      the connection was lost during a commit; the outcome is unknown
        ├── StoreBusy              the name has another owner
        ├── StoreMismatch          the name belongs to another feed
        └── OwnershipLost          the name has a new owner; nothing was written

Wrong arguments raise `TypeError` or `ValueError` in the constructor.
"""

from push_to_poll_client._validation import check_number


class PushToPollError(Exception):
    """Base class of all exceptions of this library."""


class FeedError(PushToPollError):
    """A fetch failed, and the poll failed with it.

    The cursor is unchanged, wakes are kept, and the poll is retried with backoff.

    Args:
        message: The problem, the address (without secrets), and what to do.
        retry_after: Seconds, from now, for which the server asks not to be polled. `None` if it did not ask.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class FeedRefused(FeedError):
    """The server refuses this client, and a retry alone will not help.

    Polls continue at the slowest backoff, so that the consumer recovers once the credentials or the server are
    corrected.
    """


class PagesChanged(FeedError):
    """The pages changed while they were read; start again from the saved cursor."""


class CursorExpired(FeedError):
    """The feed no longer knows the cursor, so messages may be missing.

    The consumer stops, unless `on_cursor_expired` says where to continue.

    Args:
        message: The problem, the address, and what to do.
        start: A cursor that the feed offers as a new start; `None` if it offers none.
        retry_after: As for `FeedError`.
    """

    def __init__(self, message: str, *, start: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.start = start


class FeedGone(FeedError):
    """The feed was removed for good (HTTP 410, RFC 9110 §15.5.11)."""


class Throttled(PushToPollError):
    """A poll may not start within the `timeout` of `poll_now()`.

    Args:
        message: The reason for the wait and its length.
        until: Earliest start of a poll, on the clock of `anyio.current_time()`.
        retry_after: Seconds until then, counted from the moment of the error.
    """

    def __init__(self, message: str, *, until: float, retry_after: float) -> None:
        super().__init__(message)
        self.until = until
        self.retry_after = retry_after


class ProcessError(PushToPollError):
    """A message failed for good, and the consumer stops before it.

    Neither this message nor later ones are settled, and the saved cursor is before it. `__cause__` is the
    handler's last error, or the `DecodeError`.

    Args:
        message: The problem and what to do.
        id: The id of the failed message.
        dedupe_key: Its dedupe key.
    """

    def __init__(self, message: str, *, id: str, dedupe_key: str) -> None:
        super().__init__(message)
        self.id = id
        self.dedupe_key = dedupe_key


class HandlerDecision(PushToPollError):
    """Base class of the exceptions by which a handler decides about its message.

    The decision overrides `retry` and `on_failure`. Raise a subclass. If another error led to the decision, use
    `raise … from error`: that error is kept as well.

    Args:
        reason: Text for the log, the status and the dead letter.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "the handler gave no reason")


class RetryMessage(HandlerDecision):
    """Retry the message later, however many attempts it had.

    For example when a service that the handler calls answers with `Retry-After`.

    Args:
        reason: Text for the log and the status.
        after: Seconds to wait.

    Raises:
        TypeError: `after` is not a number.
        ValueError: `after` is negative or not finite.
    """

    def __init__(self, reason: str = "", *, after: float) -> None:
        check_number("after", after)
        super().__init__(reason)
        self.after = after


class DeadLetterMessage(HandlerDecision):
    """Keep the message as a dead letter now, without further retries."""


class SkipMessage(HandlerDecision):
    """Skip the message now, with a line in the log."""


class StopConsumer(HandlerDecision):
    """Stop the consumer now, before the message."""


class ContentChanged(PushToPollError):
    """A message came again with the same dedupe key and other content.

    Raised only if the consumer has a `fingerprint`.
    """


class DecodeError(PushToPollError):
    """An entry of the feed, or its data, cannot be read.

    The message fails without a retry, and `on_failure` decides what happens to it.
    """


class ListenerError(PushToPollError):
    """A push channel cannot work, and a retry does not help.

    `Consumer.run()` raises the error.
    """


class SubscriptionGone(PushToPollError):
    """The server no longer knows a subscription, or rejects its terms.

    Raised by the code that renews a subscription; a new one is created.
    """


class StoreError(PushToPollError):
    """The store cannot be opened, read or written. Nothing was written."""


class StoreUnavailable(StoreError):
    """The store cannot be used now, but may recover. Nothing was written, except after `CommitInDoubt`.

    Examples: a full disk, a lock held by another program. `run()` keeps uncommitted progress and retries with
    backoff. `poll_now()` raises the error.
    """


class CommitInDoubt(StoreUnavailable):
    """The connection was lost during a commit, so it is unknown whether the commit took effect.

    Only a store on a server raises it. `run()` claims the name again, which tells the outcome; messages whose
    processing was not recorded are processed again. `poll_now()` raises the error: call it again.
    """


class StoreBusy(StoreError):
    """The name already has an owner.

    The owner is another process, or another consumer of this process. `run()` stands by until the name is free,
    unless `standby=False`.

    Args:
        message: Who owns the name, and what to do.
        owner: Name of the owner for people, such as "process 4711"; `None` if the store does not tell.
        seconds_left: Seconds until the owner's lease ends unless it is renewed; `None` without a lease.
    """

    def __init__(self, message: str, *, owner: str | None = None, seconds_left: float | None = None) -> None:
        super().__init__(message)
        self.owner = owner
        self.seconds_left = seconds_left


class StoreMismatch(StoreError):
    """The name is bound to another feed.

    The saved cursor means nothing to this feed. If it is the same feed at a new address, bind the name to the new
    address with `push-to-poll rebind` or the store's `rebind()`.

    Args:
        message: The two feeds, and what to do.
        bound_to: The identity of the feed that the name is bound to; `None` if the store does not tell.
    """

    def __init__(self, message: str, *, bound_to: str | None = None) -> None:
        super().__init__(message)
        self.bound_to = bound_to


class OwnershipLost(StoreError):
    """Another owner has claimed the name since this session began. Nothing was written."""
