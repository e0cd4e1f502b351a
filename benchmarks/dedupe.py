"""What dedupe costs, for each kind of id, in an empty state file and in a full one.

Milliseconds for a page of 1,000 messages with `synchronous="FULL"`: to ask which are new, and to commit what is.
"""

import argparse
import gc
import random
import statistics
import tempfile
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path

import anyio

from push_to_poll_client import Record, SQLiteStore
from push_to_poll_client.stores._sqlite.session import SQLiteSession

PAGE = 1_000

PAGES = 20
"""Each figure is the median of so many pages."""

FILLING = 8_000
"""Records of a commit that fills the file."""


def ordered() -> Iterator[str]:
    """Ids that are counted up."""
    number = 0
    while True:
        yield f"{number:012}"
        number += 1


def uuid7() -> Iterator[str]:
    """Ids that begin with a time in milliseconds (RFC 9562, section 5.7), ten in each."""
    dice = random.Random(7)  # noqa: S311  # the same ids in each run
    number = 0
    while True:
        when = 1_700_000_000_000 + number // 10
        yield str(
            uuid.UUID(int=when << 80 | 7 << 76 | dice.getrandbits(12) << 64 | 2 << 62 | dice.getrandbits(62))
        )
        number += 1


def uuid4() -> Iterator[str]:
    """Ids in no order."""
    dice = random.Random(4)  # noqa: S311  # likewise
    while True:
        yield str(uuid.UUID(int=dice.getrandbits(128), version=4))


KINDS: dict[str, Callable[[], Iterator[str]]] = {"ordered": ordered, "UUIDv7": uuid7, "UUIDv4": uuid4}


class File:
    """A state file that is filled with ids of one kind."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.ids = KINDS[kind]()
        self.first = list(islice(self.ids, PAGE * PAGES))
        self.last: list[str] = []

    @asynccontextmanager
    async def opened(self) -> Iterator[SQLiteSession]:
        """Owned, as by a consumer that starts."""
        session = await SQLiteStore(self.path, retention=None, max_records=None).claim("a", feed="f")
        try:
            yield session
        finally:
            await session.release()

    def next(self) -> list[str]:
        """A page of new ids."""
        self.last = list(islice(self.ids, PAGE))
        return self.last

    async def fill(self, session: SQLiteSession, records: int) -> None:
        """Record so many ids."""
        while (missing := records - session.record_count) > 0:
            keys = islice(self.ids, min(missing, FILLING))
            await session.commit(cursor="c", records=[Record(key) for key in keys])


async def settle(session: SQLiteSession, keys: list[str]) -> float:
    """Settle a page: milliseconds."""
    gc.collect()
    began = time.perf_counter()
    unseen = await session.unseen(keys)
    await session.commit(cursor=keys[0], records=[Record(key) for key in keys if key in unseen])
    return (time.perf_counter() - began) * 1e3


async def pages(session: SQLiteSession, page: Callable[[int], list[str]]) -> float:
    """The median of some pages."""
    return statistics.median([await settle(session, page(number)) for number in range(PAGES)])


async def in_memory(file: File) -> float:
    """Bytes for a record that a run keeps from its first page on."""
    async with file.opened() as session:
        tracemalloc.start()
        await session.unseen(file.next())
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return taken / session.record_count


async def row(path: Path, kind: str, records: int) -> str:
    """A line of the table."""
    file = File(path, kind)
    async with file.opened() as session:
        empty = await pages(session, lambda number: file.first[number * PAGE : (number + 1) * PAGE])
        await file.fill(session, records)
    size = path.stat().st_size / records  # noqa: ASYNC240  # nothing else runs
    memory = await in_memory(file)
    async with file.opened() as session:
        first = await settle(session, file.next())
        full = await pages(session, lambda _: file.next())
        half = await pages(session, lambda _: file.last[PAGE // 2 :] + file.next()[: PAGE // 2])
        first_again = await settle(session, file.first[:PAGE])
        again = await pages(session, lambda number: file.first[number * PAGE : (number + 1) * PAGE])
    figures = (empty, full, half, again, first, first_again)
    return f"| {kind} | {' | '.join(f'{figure:.1f}' for figure in figures)} | {size:.0f} | {memory:.1f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    arguments = parser.parse_args()
    print(f"{arguments.records:,} records; ms for 1,000 messages; bytes for a record")
    print(
        "| ids | empty file | full file | half known | a replay | first of a run | of a replay | disk | memory |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory() as directory:
            print(anyio.run(row, Path(directory, "state.db"), kind, arguments.records), flush=True)


if __name__ == "__main__":
    main()
