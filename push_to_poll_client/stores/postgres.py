"""Store in PostgreSQL, for many replicas of a service.

`PostgresStore` keeps its tables in a schema of the user's database. Each name has one owner, by a lease in the
server's clock. The rest is in `_postgres`: connections, tables, the lease and the thread that renews it, sessions,
and the transactions of handlers.
"""

import os
import random
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import anyio

from push_to_poll_client._event_loop import EventLoop
from push_to_poll_client._types import Push
from push_to_poll_client._validation import check_count, check_number, check_str
from push_to_poll_client.stores._names import Rebind
from push_to_poll_client.stores._postgres import schema as tables
from push_to_poll_client.stores._postgres.claims import Claimant, rebind
from push_to_poll_client.stores._postgres.connection import Connection, Database, check_conninfo
from push_to_poll_client.stores._postgres.housekeeping import Housekeeping
from push_to_poll_client.stores._postgres.lease import lease_clock, next_try
from push_to_poll_client.stores._postgres.notices import digest_of
from push_to_poll_client.stores._postgres.records import PostgresRetention
from push_to_poll_client.stores._postgres.requests import request_dead_letters, request_hand_over
from push_to_poll_client.stores._postgres.session import PostgresSession
from push_to_poll_client.stores._postgres.transaction import Connections, current_connection
from push_to_poll_client.stores._postgres.transactional_session import TransactionalPostgresSession
from push_to_poll_client.stores._retention import DEFAULT_MAX_RECORDS, DEFAULT_RETENTION

if TYPE_CHECKING:
    import psycopg

    from push_to_poll_client.stores.reader import StoreReader

__all__ = ["PostgresStore"]

_SHORTEST_LEASE = 1.0

_FORWARD_TIMEOUT = 1.0
"""Seconds for which a consumer that stops waits until its wakes are sent. They are lost if the server is away."""


class PostgresStore:
    """Keeps the progress of consumers in PostgreSQL, shared by any number of replicas.

        store = PostgresStore("postgresql://me@db.example/shop")

    Every replica runs the same code. For each name one of them is the owner, and polls; the others stand by. The
    owner has a lease, which a thread of the store renews. If the owner stops, it releases the name, and another
    replica continues at once. If it is killed or cut off, another replica continues when the lease has ended.
    Each commit compares the owner in the server, so one that was replaced writes nothing.

    The store uses at most `max_connections` connections for its calls, and one for the thread, in each process.
    Each commit is one round trip.

    Through PgBouncer in transaction mode the store works, but hears no wakes of other replicas and no releases:
    PgBouncer does not pass notifications on. It logs that. Give `listen_conninfo`, which leads to the server
    itself.

    Install `'push-to-poll-client[postgres]'`, and the client library libpq from the system or with
    `'psycopg[binary]'`. PostgreSQL 14 or newer.

    Args:
        conninfo: A connection string or URI of libpq, or a function that returns one. The function is called for
            each connection, in a worker thread, so it can fetch a fresh password.
        schema: The schema with the store's tables, 1 to 48 letters, digits and `_`. Replicas with the same schema
            share their names. Notifications use a channel of the same name.
        lease: Seconds without a sign of the owner after which another replica takes over. At least 1. A pause of
            the process that is longer costs it the name.
        instance: A name of this replica that stays the same when it is restarted, such as the name of a pod in a
            StatefulSet. Such a restarted replica takes its names back after half a lease. At most one running
            process may have it. None means: the host and the process id, only to be shown.
        listen_conninfo: Like `conninfo`, for the connection of the thread. None means `conninfo`.
        migrate: If True, the first connection creates or updates the tables. If False, it raises a `StoreError`
            if they are missing or old; run `push-to-poll migrate` before.
        retention: As for `SQLiteStore`.
        max_records: As for `SQLiteStore`, in groups of an eighth.
        max_connections: Connections for calls of the store that can be open at the same time, for all names.
            Transactions of handlers have connections of their own, one for each handler that runs.
        transactional: True if handlers also write to the database, through `connection`.
        connections: A function that returns a context manager for each call of a handler, which yields a
            `psycopg.Connection` (for `async def` handlers an async one, and a `psycopg.AsyncConnection`), commits
            at the end of its block, and rolls back if the block raises: such as `ConnectionPool.connection` of
            psycopg_pool. It must begin a transaction of its own, to the same database. An async one is left in
            another task than it was entered in. None means connections of the store.

    Raises:
        ImportError: psycopg is not installed, or cannot find libpq.
        TypeError: `conninfo` is neither a str nor a function.
        ValueError: libpq cannot parse `conninfo`, or another argument is out of range.
    """

    def __init__(
        self,
        conninfo: str | Callable[[], str],
        *,
        schema: str = "push_to_poll",
        lease: float = 10.0,
        instance: str | None = None,
        listen_conninfo: str | Callable[[], str] | None = None,
        migrate: bool = True,
        retention: float | None = DEFAULT_RETENTION,
        max_records: int | None = DEFAULT_MAX_RECORDS,
        max_connections: int = 4,
        transactional: bool = False,
        connections: Connections | None = None,
    ) -> None:
        check_conninfo(conninfo)
        self._conninfo = conninfo
        check_number("lease", lease, above_zero=True)
        if lease < _SHORTEST_LEASE:
            raise ValueError(f"lease must be at least {_SHORTEST_LEASE:g} seconds, got {lease!r}")
        check_count("max_connections", max_connections)
        if instance is not None:
            check_str("instance", instance)
            if not instance:
                raise ValueError("instance must be a str of at least 1 character, or None, got ''")
        if connections is not None and not transactional:
            raise ValueError("connections= is for handlers' transactions: pass transactional=True as well")
        self._migrate = migrate
        self._lease = float(lease)
        self._database = Database(
            conninfo, schema, timeout=max(self._lease, 5.0), most=max_connections, prepare=self._prepare
        )
        self._listening = Database(
            conninfo if listen_conninfo is None else listen_conninfo,
            schema,
            timeout=self._lease,
            most=1,
            connect_timeout=max(2.0, min(5.0, self._lease / 3)),  # of libpq at least 2
        )
        self._claimant = Claimant(
            self._database,
            PostgresRetention(retention, max_records),
            self._lease,
            instance or "",  # without one, see `_start_unused`
            instance is not None,
            self._now,
            connections,
        )
        self._transactional = transactional
        self._session_class = TransactionalPostgresSession if transactional else PostgresSession
        self._start_unused()

    def _now(self) -> float:
        return lease_clock()

    def _start_unused(self) -> None:
        self._process = os.getpid()
        if not self._claimant.takes_back:
            self._claimant = self._claimant._replace(instance=f"{socket.gethostname()}:{self._process}")
        self._database.forget_connections()
        self._housekeeping = Housekeeping(self._listening, self._lease, self._now, self._database.close)

    def _prepare(self, connection: Connection) -> None:
        tables.prepare(connection, self._database.schema, self._database.where, migrate=self._migrate)

    def _check_process(self) -> None:
        if self._process != os.getpid():  # forked: connections and thread are the parent's
            self._start_unused()

    concurrent_transactions = True
    """True: each transaction of a handler has a connection of its own."""

    @property
    def transactional(self) -> bool:
        """True if handlers also write to the database."""
        return self._transactional

    @property
    def connection(self) -> "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]":
        """Connection for a handler; its writes are committed with the record of the message, or not at all.

        In a thread, as in a plain handler (`def`), it is a `psycopg.Connection`; in the event loop, as in an
        `async def` handler, a `psycopg.AsyncConnection`, on asyncio only. With `connections=` it is the connection
        of that function. Use it only in a handler, until the handler returns: in its task, in tasks that it starts
        and waits for, and in threads with its context, as for `SQLiteStore.connection`.

        Its transaction has begun, at the isolation level that the database or the connection string sets. The
        handler must not end it: `commit()`, `rollback()` and `close()` raise a `RuntimeError`. For a part that may
        fail alone, `connection.transaction()` makes a savepoint. After five executions a statement is prepared, as
        usual with psycopg, but not through a pooler such as PgBouncer.

        Raises:
            RuntimeError: The caller is not a handler of a consumer of this store, the store is not transactional,
                or the event loop is trio's.
        """
        if not self._transactional:
            raise RuntimeError(
                f"{self._database.where}: this store has no connection for handlers; create it with "
                "PostgresStore(..., transactional=True)"
            )
        return current_connection(self._database)

    @property
    def hears_wakes(self) -> bool | None:
        """True if notifications of other replicas arrive, False if not; None if not known (yet)."""
        return self._housekeeping.hears

    async def claim(self, name: str, *, feed: str) -> PostgresSession:
        """Become the one owner of `name`. The first claim binds the name to `feed`.

        Raises:
            StoreBusy: The name has an owner.
            StoreMismatch: The name is bound to another feed.
            StoreUnavailable: The server cannot be reached, or cannot be written to now.
            StoreError: The server refuses: rights, password, tables of another version.
        """
        self._check_process()
        session: PostgresSession | None = None
        claimed = []
        try:
            await self._database.run(lambda: claimed.append(self._claimant.claim(name, feed)))
            return self._session_class(self._claimant, claimed[0], self._housekeeping)
        except BaseException:  # cancelled, perhaps after the name was claimed
            if claimed:
                session = self._session_class(self._claimant, claimed[0], self._housekeeping)
                await session.release()
            raise

    async def freed(self, name: str) -> None:
        """Return when a name may be free: after a release, or after the end of its lease. Also for a new owner.

        Raises:
            StoreError: The server cannot be reached, or refuses.
        """
        self._check_process()
        loop, event = EventLoop(), anyio.Event()
        with self._housekeeping.waiting(digest_of(name), partial(loop.call, event.set)):
            known_owner = None
            while not event.is_set():
                requested = self._now()
                found = await self._database.run(partial(self._claimant.busy_for, name))
                if found is None or found[0] != (known_owner := known_owner or found[0]) or found[1] <= 0:
                    return
                until = next_try(requested, found[1], self._lease, random.random())  # noqa: S311  # not for secrets
                with anyio.move_on_after(max(0.0, until - self._now())):
                    await event.wait()

    def forward(self, name: str, push: Push | None) -> None:
        """Send a wake to the replica that owns a name. From any thread; never raises."""
        self._check_process()
        self._housekeeping.forward(digest_of(name), push)

    async def forwarded(self) -> None:
        """Return when the wakes given to `forward` are sent, or after a second."""
        self._check_process()
        if self._housekeeping.has_wakes:
            await self._database.run(partial(self._housekeeping.wait_until_sent, _FORWARD_TIMEOUT))

    async def rebind(
        self, name: str, *, feed: str | None = None, new_name: str | None = None, replace: bool = False
    ) -> None:
        """Bind a name to another feed, or rename it; see `SQLiteStore.rebind`.

        Raises:
            StoreBusy: One of the names has an owner.
            StoreError: The server cannot be reached, or refuses; nothing was changed.
            ValueError: The name does not exist, the new name exists already, or an argument is invalid.
            TypeError: An argument is not a `str`.
        """
        self._check_process()
        asked = Rebind(name, feed, new_name, replace)
        await self._database.run(partial(rebind, self._database, asked))

    async def request(self, name: str, keys: Sequence[str] | None, what: Literal["retry", "drop"]) -> int:
        """Ask the owner of a name to retry or drop dead letters, from any process.

        The dead letters are marked, and the owner is woken. It retries each of them once, or drops it, before its
        next poll. Without an owner, the next one does it. If the owner is just retrying a dead letter, and fails
        again, a request for it counts for that retry: ask again.

        Args:
            name: The consumer's name.
            keys: Dedupe keys of the dead letters; `None` means all. A key without a dead letter is ignored.
            what: "retry" or "drop".

        Returns:
            The number of marked dead letters.

        Raises:
            StoreError: The name does not exist; or the server cannot be reached, or refuses.
            ValueError: `what` is neither "retry" nor "drop".
        """
        self._check_process()
        return await self._database.run(partial(request_dead_letters, self._database, name, keys, what))

    async def request_hand_over(self, name: str) -> str | None:
        """Ask the owner of a name to hand over to another replica; from any process.

        The owner finishes the message in flight, commits and releases the name. A replica that stands by takes
        over; if there is none, the owner takes the name back after two seconds.

        Returns:
            The `instance` of the owner; `None` if the name has no owner.

        Raises:
            StoreError: The name does not exist; or the server cannot be reached, or refuses.
        """
        self._check_process()
        return await self._database.run(partial(request_hand_over, self._database, name))

    def reader(self) -> "StoreReader":
        """Return a reader for the progress, owners and dead letters of all names; see `StoreReader`.

        It needs no claim and only the right to read the tables. Each call opens a connection and waits for the
        server: call it in a thread, with `anyio.to_thread.run_sync`.
        """
        # Imported here because most programs do not read a store by themselves.
        from push_to_poll_client.stores._postgres.reader import PostgresReader

        schema, timeout = self._database.schema, self._database.timeout
        return PostgresReader(Database(self._conninfo, schema, timeout=timeout, most=1, keeps=False))

    async def aclose(self) -> None:
        """End the thread and close the connections. Names that are still owned are free after their lease."""
        if self._process == os.getpid():
            await self._database.run(self._housekeeping.stop)
            self._database.close()

    def __repr__(self) -> str:
        return f"PostgresStore({self._database.where})"
