"""Find the consumer that is meant in a state file, and change it while no process owns the file."""

import argparse
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import anyio

from push_to_poll_client._exceptions import StoreBusy, StoreError
from push_to_poll_client._protocols import Session
from push_to_poll_client._validation import quoted
from push_to_poll_client.cli._output import UsageError
from push_to_poll_client.stores import SQLiteStore
from push_to_poll_client.stores._sqlite.file import lock_holder
from push_to_poll_client.stores._sqlite.reader import ConsumerProgress, StoreFile, read_store

__all__ = [
    "add_state_to",
    "find_consumer",
    "run_with_session",
]


_T = TypeVar("_T")

_MAX_NAMES = 5
"""Names that an error lists: they have to fit into its line."""


def add_state_to(parser: argparse.ArgumentParser) -> None:
    """Add to a command the file and the name."""
    parser.add_argument(
        "--state", metavar="FILE", required=True, help="the file, as it was given to tail or to SQLiteStore"
    )
    parser.add_argument("--name", metavar="NAME", help="the consumer's, if the file has several")


def find_consumer(options: argparse.Namespace) -> ConsumerProgress:
    """The consumer that is meant: the only one of the file, or the one that was named.

    Raises:
        StoreError: The file cannot be read, or no consumer has kept anything in it.
        UsageError: There are several, or none of that name.
    """
    store = read_store(options.state)
    if not store.progress:
        raise StoreError(f"{store.path} has no consumer's state yet; run one that keeps its state there")
    if options.name is None and len(store.progress) == 1:
        return store.progress[0]
    found = [one for one in store.progress if options.name in {one.name, quoted(one.name)[1:-1]}]
    if len(found) != 1:
        raise UsageError(_describe_choices(store, "is missing" if options.name is None else "is none of them"))
    return found[0]


def run_with_session(
    progress: ConsumerProgress, path: str, work: Callable[[Session], Awaitable[_T]], *, instead: str
) -> _T:
    """Claim the name, do the work, and give the name back.

    Args:
        progress: Of the consumer.
        path: The file.
        work: Called with the session.
        instead: What the owner of the file is to call, if there is one.

    Raises:
        StoreBusy: A process owns the file.
        StoreError: It cannot be written.
    """
    return anyio.run(partial(_claim_and_run, progress, path, work, instead=instead))


async def _claim_and_run(
    progress: ConsumerProgress, path: str, work: Callable[[Session], Awaitable[_T]], *, instead: str
) -> _T:
    # What the consumer's own retention keeps must not go, and the file may be an application's too.
    store = SQLiteStore(path, retention=None, max_records=None, transactional=True)
    try:
        session = await store.claim(progress.name, feed=progress.feed)
    except StoreBusy as busy:
        owner = lock_holder(store.path)
        raise StoreBusy(
            f"{store.path} is in use by {'another process' if owner is None else f'process {owner}'}; stop it "
            f"first, or let it call {instead} of its consumer"
        ) from busy
    try:
        return await work(session)
    finally:
        await session.release()


def _describe_choices(store: StoreFile, why: str) -> str:
    names = ", ".join(quoted(one.name) for one in store.progress[:_MAX_NAMES])
    more = len(store.progress) - _MAX_NAMES
    return f"--name {why}; the file has {names}" + (f" and {more} more" if more > 0 else "")
