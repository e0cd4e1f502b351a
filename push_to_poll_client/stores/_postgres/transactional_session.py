"""Sessions of a transactional store, and the blocks that they put around a handler.

A plain handler (`def`) has its transaction in its own thread. For an `async def` handler the event loop must not
wait. On asyncio it begins and commits by itself in the usual case, since a change of the thread takes as long as a
round trip to the server. Else a worker thread does.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from functools import partial
from types import TracebackType
from typing import Any

import anyio
import psycopg

from push_to_poll_client._event_loop import in_own_task
from push_to_poll_client._exceptions import StoreError, StoreUnavailable
from push_to_poll_client._types import Record
from push_to_poll_client._validation import describe
from push_to_poll_client.stores._postgres.claims import Claimant
from push_to_poll_client.stores._postgres.connection import Database, ask_if_session_is_kept, ask_server
from push_to_poll_client.stores._postgres.errors import store_error
from push_to_poll_client.stores._postgres.handler_connections import HandlerAsyncConnection, LoopView
from push_to_poll_client.stores._postgres.housekeeping import Housekeeping
from push_to_poll_client.stores._postgres.progress import ClaimedName
from push_to_poll_client.stores._postgres.session import PostgresSession
from push_to_poll_client.stores._postgres.transaction import Connections, Transaction, psycopg_error


class ThreadTransaction(Transaction):
    """The block around a plain handler, entered and left in its thread."""

    def __enter__(self) -> None:
        self._progress.check()
        if self._connections is not None:
            block, connection = _enter_block(self._connections, self.database)
            try:
                self._set_block(block, connection)
                with connection.pipeline():
                    psycopg.Cursor(connection).execute(*self._begin_in_block, prepare=False)
            except BaseException as error:
                self._abandon(error)
                if isinstance(error, psycopg.Error):
                    raise store_error(self.database.where, error) from error
                raise
        self._enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        self._end(error)


def _enter_block(connections: Connections, database: Database) -> tuple[Any, psycopg.Connection[Any]]:
    try:
        block = connections()
        if not isinstance(block, AbstractContextManager):
            raise StoreError(  # noqa: TRY301  # not to be wrapped below
                f"{database.where}: connections= must return a plain context manager for a plain handler (def), "
                f"got {type(block).__name__}"
            )
        connection = block.__enter__()
    except StoreError:
        raise
    except Exception as error:
        raise _not_entered(database, error) from error
    if isinstance(connection, psycopg.Connection):
        return block, connection
    with suppress(Exception):
        block.__exit__(None, None, None)
    raise StoreError(_wrong_connection(database, connection, psycopg.Connection))


def _not_entered(database: Database, error: Exception) -> StoreError:
    cause = psycopg_error(error)
    if cause is not None:
        return store_error(database.where, cause)
    kind = StoreUnavailable if isinstance(error, OSError) else StoreError
    return kind(f"{database.where}: connections= failed: {describe(error)}")


def _wrong_connection(database: Database, connection: object, wanted: type[Any]) -> str:
    return (
        f"{database.where}: connections= must yield a psycopg.{wanted.__name__}, got {type(connection).__name__}"
    )


def _is_asyncio() -> bool:
    return anyio.get_cancelled_exc_class() is asyncio.CancelledError


class TaskTransaction(Transaction):
    """The block around an `async def` handler."""

    async def __aenter__(self) -> None:
        self._loop_thread = threading.get_ident()
        self._async_view: HandlerAsyncConnection | None = None
        self._progress.check()
        try:
            if self._connections is not None:
                await self._enter_block(self._connections)
            else:
                await self._begin_in_event_loop()
                if self._raw is None:
                    await self.database.run(self._begin)
            self._progress.check()  # it may have waited for a connection
        except BaseException as error:  # cancelled, perhaps after it has begun
            if self._raw is not None:
                await self.database.run(partial(self._abandon, error))
            if isinstance(error, psycopg.Error):
                raise store_error(self.database.where, error) from error
            raise
        self._enter()

    async def _begin_in_event_loop(self) -> None:
        """Begin on asyncio, if there is an unused connection."""
        connection = self.database.borrow_idle() if _is_asyncio() else None
        if connection is not None:
            self._set_connection(connection)
            if connection.keeps_session is None:
                connection.keeps_session = await self._ask_in_event_loop(ask_if_session_is_kept)
            await self._ask_in_event_loop(partial(ask_server, statements=self._begin_statement()))

    async def _ask_in_event_loop(self, ask: Callable[[LoopView], Any]) -> Any:
        view = LoopView(self._raw.pgconn)
        view.deadline = time.monotonic() + self.database.timeout
        return await view.wait(ask(view))

    async def _enter_block(self, connections: Connections) -> None:
        if not _is_asyncio():
            raise StoreError(self._trio_text)
        try:
            block = connections()
            if not isinstance(block, AbstractAsyncContextManager):
                raise StoreError(  # noqa: TRY301  # not to be wrapped below
                    f"{self.database.where}: connections= must return an async context manager for an async "
                    f"handler, got {type(block).__name__}"
                )
            connection = await block.__aenter__()
        except StoreError:
            raise
        except Exception as error:
            raise _not_entered(self.database, error) from error
        if not isinstance(connection, psycopg.AsyncConnection):
            with suppress(Exception):
                await block.__aexit__(None, None, None)
            raise StoreError(_wrong_connection(self.database, connection, psycopg.AsyncConnection))
        self._set_block(block, connection)
        async with connection.pipeline():
            await psycopg.AsyncCursor(connection).execute(*self._begin_in_block, prepare=False)

    def connection(self) -> Any:
        """Return the connection for the calling thread."""
        if threading.get_ident() != self._loop_thread:
            return super().connection()
        self._check_not_ended()
        if self._block is not None:
            return self._raw
        if not _is_asyncio():
            self._refusal = StoreError(self._trio_text)
            raise RuntimeError(self._trio_text)
        if self._async_view is None:
            self._async_view = HandlerAsyncConnection(self._prepare_statements(), self._check_not_ended)
        return self._async_view

    @property
    def _trio_text(self) -> str:
        return (
            f"{self.database.where}: psycopg has no AsyncConnection for trio; define the handler with def, or use "
            "the connection in anyio.to_thread.run_sync()"
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A cancellation meanwhile waits for the caller's next checkpoint: the caller has to know what was done.
        self._leave()
        # Other open transactions need checks first that may wait for locks.
        is_usual = (
            error is None and self._block is None and _is_asyncio() and len(self._progress.transactions) == 1
        )
        if not (is_usual and await in_own_task(self._end_in_event_loop, cancel_later=True)):
            await self.database.run(partial(self._end, error), cancel_later=True)

    async def _end_in_event_loop(self) -> bool:
        """Commit the usual case; return False, having done nothing, in other cases."""

        async def settle(arguments: str) -> None:
            try:
                await self._ask_in_event_loop(partial(ask_server, statements=self._settle_statement(arguments)))
            except psycopg.Error as failure:
                raise self._commit_error(failure) from failure

        is_done = True
        try:
            self._check_effects()
            is_done = await self._progress.settle_in_event_loop(self._records, settle)
        except BaseException as failure:
            await self.database.run(partial(self._undo_commit, failure))
            raise
        finally:
            if is_done:
                self._progress.transactions.discard(self)
        if is_done:
            self._note_commit()
        return is_done


class TransactionalPostgresSession(PostgresSession):
    """A claimed name of a `PostgresStore` that is transactional."""

    def __init__(self, claimant: Claimant, claimed: ClaimedName, housekeeping: Housekeeping) -> None:
        super().__init__(claimant, claimed, housekeeping)
        # Committed with effects, and not given to `commit` yet, which is not to write them again.
        self._written: dict[str, Record] = {}

    def transaction(self, records: Sequence[Record], /) -> TaskTransaction:
        """Commit the writes of an `async def` handler together with `records`, or neither (G8)."""
        self._check()
        return TaskTransaction(self._database, self._progress, records, self._claimant.connections, self._written)

    def transaction_in_thread(self, records: Sequence[Record], /) -> ThreadTransaction:
        """Commit the writes of a plain handler together with `records`, or neither (G8)."""
        self._check()
        return ThreadTransaction(
            self._database, self._progress, records, self._claimant.connections, self._written
        )

    def _prepare(self, records: Sequence[Record]) -> Sequence[Record]:
        return [record for record in records if self._written.pop(record.key, None) != record]
