"""TOGETHER: a handler within the effects of a transactional session (G8)."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from push_to_poll_client._processing.progress import Progress
from push_to_poll_client._protocols import TransactionalSession
from push_to_poll_client._types import Message, Record

__all__ = ["TransactionFailed", "in_transaction"]

Work = TypeVar("Work", Message, Sequence[Message])


class TransactionFailed(BaseException):
    """The store failed around a handler, which is no failure of its message. The cause is how."""


def in_transaction(
    handler: Callable[[Work], Awaitable[None]],
    session: TransactionalSession,
    progress: Progress,
    records: Callable[[Work], Sequence[Record]],
) -> Callable[[Work], Awaitable[None]]:
    """The handler, so that what it writes through the store's connection is committed with the records.

    Args:
        handler: Processes a message, or several.
        session: Whose connection it writes through.
        progress: Told when what it was to commit is undone.
        records: Those of a message, or several.
    """

    async def process(work: Work) -> None:
        failure: BaseException | None = None
        try:
            async with session.effects(records(work)):
                try:
                    await handler(work)
                except BaseException as error:
                    failure = error
                    raise
        except BaseException as error:
            if error is failure:
                raise
            progress.undone()
            raise TransactionFailed from error

    return process
