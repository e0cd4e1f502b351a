"""ONCE: a page goes in, each message not yet settled is settled, and progress is committed.

What is recorded was processed, and what the cursor has passed is recorded (G5, G6). A commit covers a whole page,
or what was done in `flush_interval` (G7). No transaction is open while anybody waits.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import NoReturn, TypeAlias

import anyio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception
from tenacity.asyncio import retry_all

from push_to_poll_client._event_loop import failure_of
from push_to_poll_client._exceptions import MessageFailed, UndecodableMessage
from push_to_poll_client._status import Tally
from push_to_poll_client._text import describe, quoted
from push_to_poll_client._types import Clock, Cursor, Message, Page, Record, Session

__all__ = ["Handler", "Processor"]

logger = logging.getLogger("push_to_poll_client")

Handler: TypeAlias = Callable[[Message], Awaitable[None]]


class Processor:
    """Settles the pages of one session.

    Args:
        session: Where progress is committed.
        handler: Processes one message.
        tally: Told of each message, and of progress as it is committed.
        flush_interval: Seconds of work after which progress is committed, at the latest.
        retry: When to try a failed message again, and when to give up; `None`: give up at once.
        clock: The event loop's.

    Attributes:
        hand: The scope of the page in hand, so that a stop can set it a deadline.
    """

    def __init__(
        self,
        session: Session,
        handler: Handler,
        tally: Tally,
        *,
        flush_interval: float,
        retry: AsyncRetrying | None,
        clock: Clock,
    ) -> None:
        self.hand = anyio.CancelScope()
        self._session = session
        self._handler = handler
        self._tally = tally
        self._flush_interval = flush_interval
        self._retry = retry
        self._clock = clock
        self._cursor: Cursor | None = None
        self._records: list[Record] = []
        self._committed_at = 0.0

    async def settle(self, page: Page, *, stopping: Callable[[], bool] | None = None) -> bool:
        """Settle the messages of a page in order, and commit.

        Args:
            page: What a fetch returned.
            stopping: Asked before each message whether to stop. With it, a cancellation does not reach the
                message in hand; it ends by itself, or at the deadline of `hand`.

        Returns:
            Whether the whole page is settled and committed.

        Raises:
            MessageFailed: A message failed for good. All before it are committed.
            StoreError: Progress could not be committed; it is tried again with the next page.
        """
        await self._commit()  # what an earlier page could not
        keys = [message.key for message in page.messages]
        unseen = await self._session.unseen(keys)
        self._committed_at = self._clock()
        with anyio.CancelScope(shield=stopping is not None) as self.hand:
            try:
                if not await self._settle_all(zip(keys, page.messages, strict=True), unseen, stopping or _never):
                    return False
                self._cursor = self._cursor if page.cursor is None else page.cursor
            finally:
                await self._commit()
            return True
        return False  # the message in hand overran the deadline of `hand`

    async def _settle_all(
        self, messages: Iterable[tuple[str, Message]], unseen: set[str], stopping: Callable[[], bool]
    ) -> bool:
        handler, clock = self._handler, self._clock  # looked up once: this is the loop that each message pays for
        for key, message in messages:
            if stopping():
                return False
            if key in unseen:
                if message.error is not None:
                    _give_up(message, message.error)
                try:
                    await handler(message)
                except BaseException as error:  # noqa: BLE001  # what it means is decided there
                    await self._failed(message, error)
                unseen.remove(key)
                self._records.append(Record(key))
            else:
                self._tally.counts["duplicates"] += 1
            if (cursor := message.cursor) is not None:
                self._cursor = cursor
            if clock() - self._committed_at >= self._flush_interval:
                await self._commit()
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
            await self._commit()
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

    async def _commit(self) -> None:
        cursor = None if self._cursor == self._session.cursor else self._cursor
        if cursor is None and not self._records:
            return
        with anyio.CancelScope(shield=True):
            await self._session.commit(cursor=cursor, records=self._records)
        self._tally.committed(len(self._records))
        self._cursor, self._records = None, []
        self._committed_at = self._clock()


def _never() -> bool:
    return False


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
