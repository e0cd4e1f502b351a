"""Hooks: typed calls that tell telemetry and tests what a consumer does.

Hooks decide nothing: an exception of a hook is logged, and changes nothing.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._status import FailingMessage, Gap, PollResult, Resynced
from push_to_poll_client._types import Fate, M_contra, Message, RecordState, UnreadableMessage
from push_to_poll_client._validation import describe

__all__ = ["Hooks", "SafeHooks", "with_start_hook"]


MessageOrBatch = TypeVar("MessageOrBatch", Message, Sequence[Message])

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))


class Hooks(Generic[M_contra]):
    """Override what you want to hear of. Called in the event loop, so they must be short, and never block.

    `Hooks[Entry]` are for a `Consumer[Entry]`, bare `Hooks` for any.
    """

    def message_started(self, message: M_contra) -> None:
        """The handler is about to get a message; for each further attempt, and part of a batch, again.

        What is cancelled then comes again, and nothing more is said of it until it does.
        """

    def message_settled(self, message: M_contra | UnreadableMessage, state: RecordState) -> None:
        """It is processed, dead or skipped; that is committed soon after."""

    def message_failed(
        self, message: M_contra | UnreadableMessage, error: Exception, attempt: int, fate: Fate
    ) -> None:
        """The `attempt`th attempt failed, and this becomes of the message."""

    def message_postponed(self, message: M_contra | UnreadableMessage, failing: FailingMessage) -> None:
        """It failed before a restart, and still waits for its next attempt, perhaps for hours.

        Called once, when a poll meets it; `message_failed` was called by the run before. Messages that may not
        overtake it wait too.
        """

    def resynced(self, event: Resynced) -> None:
        """The consumer goes on from another place of the feed than the saved cursor."""

    def gap(self, event: Gap) -> None:
        """Messages may be missing that the feed can no longer give."""

    def caught_up(self, result: PollResult) -> None:
        """A poll reached the end of the feed."""


HOOK_NAMES: Final = [name for name in vars(Hooks) if not name.startswith("_")]


class SafeHooks(Hooks):
    """Call the user's hooks, and log what they raise: the first failure of each hook as a WARNING.

    Args:
        hooks: The user's hooks.

    Raises:
        TypeError: It is not a `Hooks`, or one of its methods is a coroutine function, which would not be awaited.
    """

    def __init__(self, hooks: Hooks[Any]) -> None:
        if not isinstance(hooks, Hooks):
            raise TypeError(f"hooks must be a Hooks or None, not {hooks!r}")
        for name in HOOK_NAMES:
            if inspect.iscoroutinefunction(getattr(hooks, name)):
                raise TypeError(
                    f"hooks are called and not awaited: {type(hooks).__name__}.{name} must be a plain def"
                )
        self._hooks = hooks
        self._failed = set[str]()

    def message_started(self, message: Message) -> None:
        self._call("message_started", message)

    def message_settled(self, message: Message, state: RecordState) -> None:
        self._call("message_settled", message, state)

    def message_failed(self, message: Message, error: Exception, attempt: int, fate: Fate) -> None:
        self._call("message_failed", message, error, attempt, fate)

    def message_postponed(self, message: Message, failing: FailingMessage) -> None:
        self._call("message_postponed", message, failing)

    def resynced(self, event: Resynced) -> None:
        self._call("resynced", event)

    def gap(self, event: Gap) -> None:
        self._call("gap", event)

    def caught_up(self, result: PollResult) -> None:
        self._call("caught_up", result)

    def _call(self, name: str, *args: Any) -> None:
        try:
            getattr(self._hooks, name)(*args)
        except Exception as error:  # the user's hook can raise anything
            if name in self._failed:
                logger.debug("hook %s failed again: %s", name, describe(error), exc_info=error)
            else:  # most hooks are called for each message (G11)
                self._failed.add(name)
                logger.warning(
                    "hook %s failed; its further failures are logged at DEBUG: %s",
                    name,
                    describe(error),
                    exc_info=error,
                )


def with_start_hook(
    handler: Callable[[MessageOrBatch], Awaitable[None]],
    hooks: Hooks,
    messages: Callable[[MessageOrBatch], Sequence[Message]],
) -> Callable[[MessageOrBatch], Awaitable[None]]:
    """Wrap a handler so that the hooks are told of each message before the handler gets it."""

    async def process(work: MessageOrBatch) -> None:
        for message in messages(work):
            hooks.message_started(message)
        await handler(work)

    return process
