"""ONCE: a page goes in, each message not yet settled is settled, and progress is committed.

What is recorded was processed, and what the cursor has passed is recorded (G5, G6). A commit covers whole pages,
or what was done in `flush_interval` (G7), and none is under way while a message waits to be tried again.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import repeat
from operator import attrgetter
from typing import NoReturn, TypeAlias

import anyio
from anyio.abc import TaskGroup
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception
from tenacity.asyncio import retry_all

from push_to_poll_client._event_loop import failure_of
from push_to_poll_client._exceptions import MessageFailed, UndecodableMessage
from push_to_poll_client._progress import Progress
from push_to_poll_client._status import Tally
from push_to_poll_client._text import describe, quoted
from push_to_poll_client._types import Clock, Message, Page, Record

__all__ = ["Handler", "Processor", "Stop"]

logger = logging.getLogger("push_to_poll_client")

_key_of = attrgetter("key")

Handler: TypeAlias = Callable[[Message], Awaitable[None]]


class Stop:
    """Whether somebody asked to begin no further message."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        self.asked = False


_NEVER = Stop()


class Processor:
    """Settles the pages of one session.

    Args:
        progress: Knows what was settled before, and commits what is settled.
        handler: Processes one message.
        tally: Told of duplicates and retries.
        retry: When to try a failed message again, and when to give up; `None`: give up at once.
        clock: The event loop's.

    Attributes:
        hand: The scope of the page in hand, so that a stop can set it a deadline.
    """

    def __init__(
        self,
        progress: Progress,
        handler: Handler,
        tally: Tally,
        *,
        retry: AsyncRetrying | None,
        clock: Clock,
    ) -> None:
        self.hand = anyio.CancelScope()
        self._progress = progress
        self._handler = handler
        self._tally = tally
        self._retry = retry
        self._clock = clock

    async def settle(self, page: Page, *, stop: Stop | None = None, beside: TaskGroup | None = None) -> bool:
        """Settle the messages of a page in order, and commit when it is complete.

        What is not committed then is, at the end of the poll (`Progress.finish`).

        Args:
            page: What a fetch returned.
            stop: Looked at before each message. With it, a cancellation does not reach the message in hand; it
                ends by itself, or at the deadline of `hand`.
            beside: Where the commit may go on while the caller does, when the whole page is settled; `None`: the
                commit is waited for.

        Returns:
            Whether the whole page is settled.

        Raises:
            MessageFailed: A message failed for good.
            StoreError: Progress could not be committed.
        """
        keys = list(map(_key_of, page.messages))
        new = _first_of_each(keys, await self._progress.unsettled(keys))
        complete = False
        with anyio.CancelScope(shield=stop is not None) as self.hand:
            complete = await self._settle_all(zip(keys, page.messages, new, strict=False), stop or _NEVER)
        if complete:  # else it was stopped, or the message in hand overran the deadline of `hand`
            await self._complete(page, keys, beside)
        return complete

    async def _complete(self, page: Page, keys: list[str], beside: TaskGroup | None) -> None:
        if page.cursor is not None:
            self._progress.cursor = page.cursor
        if beside is None:
            await self._progress.flush()
        else:
            await self._progress.commit_beside(beside, keys)

    async def _settle_all(self, messages: Iterable[tuple[str, Message, bool]], stop: Stop) -> bool:
        handler, clock, progress = self._handler, self._clock, self._progress  # this is what each message pays for
        record = progress.pending.append
        for key, message, is_new in messages:
            if stop.asked:
                return False
            if is_new:
                if message.error is not None:
                    _give_up(message, message.error)
                try:
                    await handler(message)
                except BaseException as error:  # noqa: BLE001  # what it means is decided there
                    await self._failed(message, error)
                record(Record(key))
            else:
                self._tally.counts["duplicates"] += 1
            if (cursor := message.cursor) is not None:
                progress.cursor = cursor
            if clock() >= progress.due:
                await progress.flush()
        return True

    async def _failed(self, message: Message, error: BaseException) -> None:
        """Return when the message is processed after all."""
        if isinstance(error, UndecodableMessage):
            _give_up(message, error)
        if isinstance(error, anyio.get_cancelled_exc_class()):
            error = _failure_of(message, error)
        if not isinstance(error, Exception):  # SystemExit and the like are somebody's way to leave
            raise error
        await self._process_again(message, error)

    async def _process_again(self, message: Message, failure: Exception) -> None:
        if self._retry is None:
            _give_up(message, failure)
        first = [failure]

        async def attempt() -> None:
            nonlocal failure
            if first:
                raise first.pop()
            self._tally.counts["retries"] += 1
            try:
                await self._handler(message)
            except anyio.get_cancelled_exc_class() as cancelled:
                failure = _failure_of(message, cancelled)
                raise failure from cancelled
            except Exception as error:
                failure = error
                raise

        try:
            await self._retrying(message, self._retry)(attempt)
        except Exception as error:
            if error is failure:
                _give_up(message, failure)
            raise  # the commit before a backoff failed, not the message

    def _retrying(self, message: Message, retry: AsyncRetrying) -> AsyncRetrying:
        """The user's strategies, for exceptions alone, with nothing open while they wait."""

        async def before_sleep(state: RetryCallState) -> None:
            await self._progress.flush()
            _report(message, state)

        return retry.copy(
            sleep=self._sleep,
            before_sleep=before_sleep,
            retry=retry_all(retry_if_exception(_may_pass), retry.retry),  # type: ignore[arg-type]  # any callable serves
            retry_error_callback=None,
            reraise=True,
        )

    async def _sleep(self, seconds: float) -> None:
        """Wait with nothing in hand, so that a cancellation need not wait."""
        shield, self.hand.shield = self.hand.shield, False
        try:
            await anyio.sleep(seconds)
        finally:
            self.hand.shield = shield


def _first_of_each(keys: Sequence[str], unsettled: set[str]) -> Iterable[bool]:
    """For each key whether its message is to be settled: not if it was before, or earlier in this page."""
    return repeat(True) if len(unsettled) == len(keys) else _each_once(keys, unsettled)  # noqa: FBT003


def _each_once(keys: Sequence[str], unsettled: set[str]) -> Iterable[bool]:
    new = []
    for key in keys:
        new.append(key in unsettled)
        unsettled.discard(key)
    return new


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may go better."""
    return isinstance(error, Exception) and not isinstance(error, UndecodableMessage)


def _failure_of(message: Message, cancelled: BaseException) -> Exception:
    try:
        return failure_of(cancelled, "the handler")
    except BaseException:
        logger.info("cancelled while message %s was in hand: it will be done again", quoted(message.id))
        raise


def _report(message: Message, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    logger.warning(
        "message %s failed at attempt %d, again in %.1f s: %s",
        quoted(message.id),
        state.attempt_number,
        state.upcoming_sleep,
        describe(error),
    )


def _give_up(message: Message, error: Exception) -> NoReturn:
    """The one place that decides what becomes of a message that failed for good: it stops the consumer."""
    raise MessageFailed(
        f"message {quoted(message.id)} failed and stops the consumer: {describe(error)}. "
        "It and all after it are not settled; mend the handler or the message, and run again.",
        id=message.id,
    ) from error
