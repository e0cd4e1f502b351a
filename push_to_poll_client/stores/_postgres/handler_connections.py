"""Connection objects of handlers: new ones for each transaction, on a connection to the server that stays.

So a row factory, an adapter or a `notice` handler of one message is not seen by the next one, and a connection
object that a task or thread keeps for longer cannot write into the transaction of another message.

Only the prepared statements are shared, because they stay with the connection to the server.
"""

import math
from collections.abc import Callable
from typing import Any

import psycopg

from push_to_poll_client.stores._postgres.connection import Connection, wait_until
from push_to_poll_client.stores._postgres.errors import TimedOut

OUTSIDE_HANDLER = (
    "the store's connection works only while a message is processed, in the handler's task, tasks and threads. "
    "For a thread use anyio.to_thread.run_sync() or asyncio.to_thread(); threading.Thread, executors and "
    "loop.run_in_executor() need contextvars.copy_context().run. Elsewhere open a connection of your own"
)

Check = Callable[[], None]
"""Raises an error after the end of the transaction."""


class HandlerConnection(psycopg.Connection[Any]):
    """The connection of a handler in a thread, whose transaction the store ends."""

    def __init__(self, store_view: Connection, check: Check) -> None:
        super().__init__(store_view.pgconn)
        self._prepared = store_view._prepared  # noqa: SLF001
        self._check = check

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """Wait as psycopg does. Everything that is sent to the server passes here."""
        self._check()
        return super().wait(gen, *args, **options)

    def commit(self) -> None:
        raise _not_for_handlers("commit")

    def rollback(self) -> None:
        raise _not_for_handlers("rollback")

    def close(self) -> None:
        raise _not_for_handlers("close")

    def __del__(self, *_: Any) -> None:
        """Do nothing: the connection to the server is the store's, and stays open."""


class HandlerAsyncConnection(psycopg.AsyncConnection[Any]):
    """The connection of an `async def` handler, whose transaction the store ends."""

    def __init__(self, store_view: Connection, check: Check) -> None:
        super().__init__(store_view.pgconn)
        self._prepared = store_view._prepared  # noqa: SLF001
        self._check = check

    async def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """Wait as psycopg does. Everything that is sent to the server passes here."""
        self._check()
        return await super().wait(gen, *args, **options)

    async def commit(self) -> None:
        raise _not_for_handlers("commit")

    async def rollback(self) -> None:
        raise _not_for_handlers("rollback")

    async def close(self) -> None:
        raise _not_for_handlers("close")

    def __del__(self, *_: Any) -> None:
        """Do nothing: the connection to the server is the store's, and stays open."""


def _not_for_handlers(method: str) -> RuntimeError:
    return RuntimeError(
        f"a handler must not call {method}() on the store's connection: the store commits the transaction with "
        "the record of the message when the handler returns, and rolls it back if the handler raises; for a part "
        "that may fail alone, use `with connection.transaction()`, which makes a savepoint"
    )


class LoopView(psycopg.AsyncConnection[Any]):
    """A connection object for the store's statements in the event loop. Waits end at `deadline`."""

    deadline: float = math.inf  # on the clock of `time.monotonic()`

    async def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """Wait as psycopg does, until the deadline; then close the connection."""
        try:
            return await super().wait(wait_until(gen, self.deadline), *args, **options)
        except TimedOut:
            self.pgconn.finish()
            raise

    def __del__(self, *_: Any) -> None:
        """Do nothing: the connection to the server stays open."""


class StoreView(Connection):
    """A plain connection object of the store, for a connection that is the application's."""

    def __init__(self, pgconn: Any) -> None:
        noted = pgconn.notice_handler, pgconn.notify_handler
        super().__init__(pgconn)
        pgconn.notice_handler, pgconn.notify_handler = noted  # those of the application's own object
        self.prepare_threshold = None

    def __del__(self, *_: Any) -> None:
        """Do nothing: the application closes the connection."""
