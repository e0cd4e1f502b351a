"""Find a consumer in a state file, and change it while no process owns the file."""

import argparse
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio

from push_to_poll_client._exceptions import StoreBusy, StoreError
from push_to_poll_client._protocols import Session
from push_to_poll_client._validation import quoted
from push_to_poll_client.cli._output import UsageError
from push_to_poll_client.stores import SQLiteStore
from push_to_poll_client.stores._sqlite.owner_lock import lock_holder
from push_to_poll_client.stores._sqlite.reader import ConsumerProgress, read_store

__all__ = ["add_state_to", "explain_busy", "find_consumer", "open_store", "run_with_session"]


_T = TypeVar("_T")

_MAX_NAMES = 5
"""Names that an error lists, so that they fit into its line."""


def add_state_to(parser: argparse.ArgumentParser) -> None:
    """Add the options for the file and the consumer to a command."""
    parser.add_argument(
        "--state", metavar="FILE", required=True, help="the file, as it was given to tail or to SQLiteStore"
    )
    parser.add_argument("--name", metavar="NAME", help="the consumer's, if the file has several")


def find_consumer(options: argparse.Namespace) -> ConsumerProgress:
    """Return the consumer given by --name, or the only one of the file.

    Raises:
        StoreError: The file cannot be read, or has no consumer.
        UsageError: There are several, or none of that name.
    """
    store = read_store(options.state)
    if not store.progress:
        raise StoreError(f"{store.path} has no consumer's state yet; run one that keeps its state there")
    if options.name is None and len(store.progress) == 1:
        return store.progress[0]
    found = [one for one in store.progress if options.name in {one.name, quoted(one.name)[1:-1]}]
    if len(found) != 1:
        why = "is missing" if options.name is None else "is none of them"
        names = ", ".join(quoted(one.name) for one in store.progress[:_MAX_NAMES])
        more = len(store.progress) - _MAX_NAMES
        raise UsageError(f"--name {why}; the file has {names}" + (f" and {more} more" if more > 0 else ""))
    return found[0]


def open_store(path: str) -> SQLiteStore:
    """Return the store of a file that a command changes."""
    # No retention: records that the consumer's own retention keeps must stay. Transactional: the file may be an
    # application's too.
    return SQLiteStore(path, retention=None, max_records=None, transactional=True)


@contextmanager
def explain_busy(store: SQLiteStore, *, instead: str = "") -> Iterator[None]:
    """Name the process that owns the file, and what to do, in the error of a call that needs the file.

    Args:
        store: Of the file.
        instead: What can be done besides stopping that process; for the error.

    Raises:
        StoreBusy: A process owns the file.
    """
    try:
        yield
    except StoreBusy as busy:
        owner = lock_holder(store.path)
        raise StoreBusy(
            f"{store.path} is in use by {'another process' if owner is None else f'process {owner}'}; stop it "
            f"first{instead}"
        ) from busy


def run_with_session(
    progress: ConsumerProgress, path: str, work: Callable[[Session], Awaitable[_T]], *, instead: str
) -> _T:
    """Claim the name, do the work, and give the name back.

    Args:
        progress: The consumer in the file.
        path: The file.
        work: Called with the session.
        instead: What the process that owns the file is to call; for the error.

    Raises:
        StoreBusy: A process owns the file.
        StoreError: The file cannot be written.
    """

    async def claim_and_work() -> _T:
        store = open_store(path)
        with explain_busy(store, instead=f", or let it call {instead} of its consumer"):
            session = await store.claim(progress.name, feed=progress.feed)
        try:
            return await work(session)
        finally:
            await session.release()

    return anyio.run(claim_and_work)
