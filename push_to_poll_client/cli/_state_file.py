"""Find a consumer in a state file, and change it while no process owns the file."""

import argparse
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from push_to_poll_client._exceptions import StoreBusy, StoreError
from push_to_poll_client._protocols import Session
from push_to_poll_client._validation import quoted
from push_to_poll_client.cli._output import UsageError
from push_to_poll_client.stores import SQLiteStore
from push_to_poll_client.stores._sqlite.owner_lock import lock_holder
from push_to_poll_client.stores._sqlite.reader import ConsumerProgress, read_store

__all__ = ["add_state_to", "find_consumer", "run_with_session", "run_with_store"]


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


def run_with_store(path: str, work: Callable[[SQLiteStore], Awaitable[_T]], *, instead: str = "") -> _T:
    """Change a file while no process owns it.

    Args:
        path: The file.
        work: Called with its store.
        instead: What can be done besides stopping the process that owns the file; for the error.

    Raises:
        StoreBusy: A process owns the file; the error names it.
        StoreError: The file cannot be written.
    """

    async def run() -> _T:
        # No retention: records that the consumer's own retention keeps must stay. Transactional: the file may be
        # an application's too.
        store = SQLiteStore(path, retention=None, max_records=None, transactional=True)
        try:
            return await work(store)
        except StoreBusy as busy:
            owner = lock_holder(store.path)
            raise StoreBusy(
                f"{store.path} is in use by {'another process' if owner is None else f'process {owner}'}; stop it "
                f"first{instead}"
            ) from busy

    return anyio.run(run)


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

    async def claim_and_work(store: SQLiteStore) -> _T:
        session = await store.claim(progress.name, feed=progress.feed)
        try:
            return await work(session)
        finally:
            await session.release()

    return run_with_store(path, claim_and_work, instead=f", or let it call {instead} of its consumer")
