"""The store of a command, from `--store` or the environment: a SQLite file, or tables in PostgreSQL.

No text shows a URL, since it may contain a password.
"""

import argparse
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import anyio

from push_to_poll_client._exceptions import StoreBusy, StoreError
from push_to_poll_client._protocols import Session, Store
from push_to_poll_client._validation import one_line, quoted
from push_to_poll_client.cli._output import UsageError
from push_to_poll_client.stores import SQLiteStore
from push_to_poll_client.stores._sqlite.owner_lock import lock_holder
from push_to_poll_client.stores._sqlite.reader import SQLiteReader
from push_to_poll_client.stores.reader import ConsumerProgress, Request

if TYPE_CHECKING:
    from push_to_poll_client.stores.postgres import PostgresStore

_T = TypeVar("_T")

STORE_VARIABLE = "PUSH_TO_POLL_STORE"
SCHEMA_VARIABLE = "PUSH_TO_POLL_SCHEMA"

DEFAULT_SCHEMA = "push_to_poll"

DATABASE_TIMEOUT = 10.0
"""Seconds for the answers of a database to one call. Connecting takes at most 5 s for each of its addresses."""

MIGRATION_TIMEOUT = 600.0
"""Seconds for a migration, which may have to wait for transactions that use the tables."""

STORE_HELP = (
    "the store: a file of SQLiteStore (orders.db or sqlite:orders.db), or the postgresql:// URL of a database "
    f"(default: the environment variable {STORE_VARIABLE})"
)
SCHEMA_HELP = (
    "the schema with the tables in PostgreSQL (default: the environment variable "
    f"{SCHEMA_VARIABLE}, else {DEFAULT_SCHEMA})"
)

_MAX_NAMES = 5
"""Names that an error lists, so that they fit on one line."""

_POSTGRES = re.compile("postgres(ql)?://")  # libpq knows only these, in lower case
_OTHER_URL = re.compile(r"[a-z][a-z0-9+.-]+://|postgres(ql)?:", re.IGNORECASE)
_KEY_VALUE = re.compile(r"\s*(host|hostaddr|port|dbname|user|password|service|sslmode)\s*=", re.IGNORECASE)


def add_store_to(parser: argparse.ArgumentParser, effect: str = "") -> None:
    """Add --store and --schema. `effect` says what the store does for the command."""
    parser.add_argument("--store", metavar="STORE", help=f"{STORE_HELP}{effect and '. '}{effect}")
    parser.add_argument("--schema", metavar="NAME", help=SCHEMA_HELP)


def find_store(options: argparse.Namespace) -> "CommandStore | None":
    """Return the store that the options or the environment name, or None."""
    given = options.store if options.store is not None else os.environ.get(STORE_VARIABLE) or None
    if given is None:
        if options.schema is not None:
            raise UsageError("--schema needs --store with a postgresql:// URL; add it, or leave out --schema")
        return None
    by = "--store" if options.store is not None else STORE_VARIABLE
    if _POSTGRES.match(given):
        return _database_store(given, by, options.schema)
    path = _path(given, by)
    if options.schema is not None:
        raise UsageError("--schema is for PostgreSQL; leave it out, or give a postgresql:// URL")
    return FileStore(path)


def require_store(options: argparse.Namespace) -> "CommandStore":
    """Return the store that the options or the environment name."""
    store = find_store(options)
    if store is None:
        raise UsageError(f"--store is missing; give a file or a postgresql:// URL, or set {STORE_VARIABLE}")
    return store


def _path(given: str, by: str) -> str:
    scheme, _, rest = given.partition(":")
    path = rest if scheme.lower() == "sqlite" else given
    if scheme.lower() == "sqlite" and path.startswith("//"):
        # SQLAlchemy reads sqlite:///orders.db as a file of this directory, a browser as one of the root.
        raise UsageError(f"{by}: write sqlite:orders.db or sqlite:/srv/orders.db, without // after sqlite:")
    if path is given and (_OTHER_URL.match(path) or _KEY_VALUE.match(path)):
        raise UsageError(f"{by} must be a file, sqlite:FILE, or a URL that starts with postgresql://")
    if path in {"", ":memory:"}:
        raise UsageError(f"{by} must name a file, or be a postgresql:// URL")
    return path


def _database_store(url: str, by: str, typed_schema: str | None) -> "DatabaseStore":
    try:
        # Imported here because it needs psycopg.
        from push_to_poll_client.stores._postgres.connection import SCHEMA

        schema = os.environ.get(SCHEMA_VARIABLE) or DEFAULT_SCHEMA if typed_schema is None else typed_schema
        if not SCHEMA.fullmatch(schema):  # the store's error would show it
            named_by = SCHEMA_VARIABLE if typed_schema is None else "--schema"
            raise UsageError(f"{named_by} must be 1 to 48 letters, digits and _, and not begin with a digit")
        return DatabaseStore(url, schema)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{by}: {error}") from error


def find_consumer(
    options: argparse.Namespace, store: "CommandStore", *, argument: str = "--name"
) -> ConsumerProgress:
    """Return the consumer given by --name (or another argument), or the only consumer of the store."""
    known = store.reader.snapshot().progress
    if not known:
        raise StoreError(f"{store.where} contains no consumer yet; run a consumer with this store first")
    if options.name is None and len(known) == 1:
        return known[0]
    found = [one for one in known if options.name in {one.name, quoted(one.name)[1:-1]}]
    if len(found) != 1:
        why = "is missing" if options.name is None else "is not a consumer of the store"
        names = ", ".join(quoted(one.name) for one in known[:_MAX_NAMES])
        more = len(known) - _MAX_NAMES
        raise UsageError(f"{argument} {why}; choose one of {names}" + (f" and {more} more" if more > 0 else ""))
    return found[0]


class FileStore:
    """The file of a `SQLiteStore`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.reader = SQLiteReader(path)
        self.where: str = self.reader.where

    def consumer_store(self) -> SQLiteStore:
        """Return the store for a consumer of this process."""
        return SQLiteStore(self._path)

    def run_with_session(
        self, progress: ConsumerProgress, work: Callable[[Session], Awaitable[_T]], *, instead: str
    ) -> _T:
        """Claim a consumer's name, do the work, and release the name.

        If the name has an owner, the error names the method `instead` of its consumer.
        """

        async def claim_and_work(store: SQLiteStore) -> _T:
            return await _with_session(store, progress, work)

        return self._change(claim_and_work, instead=f", or call {instead} of its consumer there")

    def rebind(self, name: str, *, feed: str | None, new_name: str, replace: bool) -> None:
        """Bind a name to another feed or rename it; see `SQLiteStore.rebind`."""
        self._change(lambda store: store.rebind(name, feed=feed, new_name=new_name, replace=replace))

    def request_hand_over(self, _: ConsumerProgress) -> str:
        """Ask the owner of a name to hand over, and return the owner."""
        process = lock_holder(self.where)
        if process is None:
            raise StoreError(f"{self.where}: no process owns the file; nothing has to be released")
        raise StoreError(
            f"{self.where}: a consumer with a SQLite file cannot be asked to hand over; stop process {process}, "
            "and a replica that stands by takes over"
        )

    def migrate(self) -> tuple[int, int]:
        """Create or migrate the tables. Return the version before (0: no tables) and after."""
        if os.path.exists(self.where):  # noqa: PTH110  # a str, which may hold anything
            self.reader.version()  # an error for the database of another application
        return self._change(SQLiteStore.migrate)

    def _change(self, work: Callable[[SQLiteStore], Awaitable[_T]], *, instead: str = "") -> _T:
        """Change the file, which no process may own. The error names `instead` as the alternative to stopping."""

        async def run() -> _T:
            # No retention, so that this store drops no record of the consumer. Transactional, because the file may
            # also be an application's database.
            store = SQLiteStore(self._path, retention=None, max_records=None, transactional=True)
            try:
                return await work(store)
            except StoreBusy as busy:
                owner = lock_holder(store.path)
                raise StoreBusy(
                    f"{store.path} is in use by {'another process' if owner is None else f'process {owner}'}; "
                    f"stop it first{instead}"
                ) from busy

        return anyio.run(run)


async def _with_session(store: Store, progress: ConsumerProgress, work: Callable[[Session], Awaitable[_T]]) -> _T:
    session = await store.claim(progress.name, feed=progress.feed)
    try:
        return await work(session)
    finally:
        await session.release()


class DatabaseStore:
    """The tables of a `PostgresStore`. For the methods see `FileStore`."""

    def __init__(self, url: str, schema: str) -> None:
        # Imported here because these modules need psycopg.
        from push_to_poll_client.stores._postgres.connection import Database
        from push_to_poll_client.stores._postgres.reader import PostgresReader

        self._url = url
        self._schema = schema
        self._database = Database(url, schema, timeout=DATABASE_TIMEOUT, most=1, keeps=False)
        self.reader = PostgresReader(self._database)
        self.where: str = self._database.where

    def consumer_store(self, **options: Any) -> "PostgresStore":
        from push_to_poll_client.stores.postgres import PostgresStore

        return PostgresStore(self._url, schema=self._schema, **options)

    def run_with_session(
        self, progress: ConsumerProgress, work: Callable[[Session], Awaitable[_T]], *, instead: str
    ) -> _T:
        async def claim_and_work(store: "PostgresStore") -> _T:
            return await _with_session(store, progress, work)

        return self._change(progress.name, claim_and_work, instead=f", or call {instead} of its consumer there")

    def rebind(self, name: str, *, feed: str | None, new_name: str, replace: bool) -> None:
        self._change(name, lambda store: store.rebind(name, feed=feed, new_name=new_name, replace=replace))

    def request_hand_over(self, progress: ConsumerProgress) -> str:
        from push_to_poll_client.stores._postgres.requests import request_hand_over

        owner = request_hand_over(self._database, progress.name)
        if owner is None:
            raise StoreError(f"{self.where}: {quoted(progress.name)} has no owner; nothing has to be released")
        return owner

    def request(self, name: str, keys: Sequence[str] | None, what: Request) -> int:
        """Mark dead letters for the owner, all without keys, and wake it. Return their number."""
        from push_to_poll_client.stores._postgres.requests import request_dead_letters

        return request_dead_letters(self._database, name, keys, what)

    def migrate(self) -> tuple[int, int]:
        from push_to_poll_client.stores._postgres.connection import Database
        from push_to_poll_client.stores._postgres.schema import migrate_tables

        database = Database(self._url, self._schema, timeout=MIGRATION_TIMEOUT, most=1, keeps=False)
        with database.connection() as connection:
            return migrate_tables(connection, self._schema, self.where)

    def _change(self, name: str, work: Callable[["PostgresStore"], Awaitable[_T]], *, instead: str = "") -> _T:
        """Change a name that no process may own. The error names `instead` as the alternative to stopping."""

        async def run() -> _T:
            # No retention, so that this store drops no record of the consumer.
            store = self.consumer_store(retention=None, max_records=None, migrate=False)
            try:
                return await work(store)
            except StoreBusy as busy:
                owners = {one.name: one.owner for one in self.reader.snapshot().owners}
                if (owner := owners.get(name)) is None:  # the other name of `rebind`, or released meanwhile
                    raise
                raise StoreBusy(
                    f"{self.where}: {quoted(name)} is owned by {one_line(owner)}; stop it first{instead}"
                ) from busy
            finally:
                await store.aclose()

        return anyio.run(run)


CommandStore: TypeAlias = FileStore | DatabaseStore
