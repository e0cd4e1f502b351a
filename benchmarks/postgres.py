"""Compare `PostgresStore` with loops written by hand and with pgqueuer, on one PostgreSQL server.

The server writes each commit to the disk (`fsync`, `synchronous_commit`) and runs autovacuum. The sides of a row
take turns. Each turn has a new database; a row shows the median of the turns.
"""

import argparse
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count, islice
from operator import truediv

import postgres_sides as sides
import psycopg
from dedupe import KINDS
from postgres_sides import Side
from push_servers import postgres_server

SETTINGS = (
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    "autovacuum=on",
    "unix_socket_directories=",
    "max_connections=50",
    "shared_buffers=256MB",
    "max_wal_size=4GB",
)
"""Durable, with the memory that an administrator gives a small server."""


@contextmanager
def new_database(server: str, number: int) -> Iterator[str]:
    """Create a database, and drop it at the end of the block. Yields its URL."""
    name = f"turn{number}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield f"{server.rpartition('/')[0]}/{name}"
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def settle(database: str) -> None:
    """Write to the disk and to the statistics of the planner what was done so far."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


Turn = Callable[[Side], float]


def take_turns(all_sides: dict[str, Side], repetitions: int, turn: Turn) -> dict[str, list[float]]:
    """Return the seconds of each side in each round."""
    times: dict[str, list[float]] = {name: [] for name in all_sides}
    for _ in range(repetitions):
        for name, side in all_sides.items():
            times[name].append(turn(side))
    return times


def ratio(name: str, beside: str, times: dict[str, list[float]]) -> str:
    """Compare two sides in each round, because the speed of a machine changes. Return the median."""
    if name == beside or beside not in times:
        return ""
    median = statistics.median(map(truediv, times[beside], times[name]))
    return f", {median:.2f} x as fast as {beside}"


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000, help="of a catch-up")
    parser.add_argument("--effects", type=int, default=5_000, help="messages whose handler writes a row")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", default="", help="sides whose name contains this text")
    options = parser.parse_args()
    numbers = count()
    with closing(postgres_server.PostgresServer(settings=SETTINGS)) as server:
        server.start()

        def turn_with(ids: list[str]) -> Turn:
            def turn(side: Side) -> float:
                with new_database(server.conninfo, next(numbers)) as database:
                    side.prepare(database, ids)
                    settle(database)
                    gc.collect()
                    began = time.perf_counter()
                    side.run(database, ids)
                    taken = time.perf_counter() - began
                    side.check(database, ids)
                return taken

            return turn

        def rows(what: str, all_sides: dict[str, Side], ids: list[str]) -> None:
            chosen = {name: side for name, side in all_sides.items() if options.only in name}
            times = take_turns(chosen, options.repetitions, turn_with(ids))
            for name in chosen:
                taken = statistics.median(times[name])
                compared = ratio(name, all_sides[name].beside, times)
                print(f"{what}, {name}: {taken:.2f} s, {len(ids) / taken:,.0f} a second{compared}", flush=True)

        for kind in ("ordered", "UUIDv4") if options.messages else ():
            ids = list(islice(KINDS[kind](), options.messages))
            rows(f"catch-up of {options.messages:,} messages with {kind} ids", sides.CATCH_UP, ids)
        if options.effects:
            ids = list(islice(KINDS["UUIDv4"](), options.effects))
            rows(f"{options.effects:,} messages whose handler writes a row", sides.EFFECTS, ids)
    if importlib.util.find_spec("pgqueuer") is None:
        print("pgqueuer is not installed, so it has no row: pip install 'pgqueuer[asyncpg]==1.6'")


if __name__ == "__main__":
    main()
