"""Move money exactly once, in the SQLite file that is also the store.

    python examples/transfers.py https://bank.example/transfers bank.db

The feed follows the HTTP Feeds specification (http-feeds.org). Each event is a CloudEvent that moves money between
two accounts; its data is `{"from": …, "to": …, "cents": …}`. One commit saves the transfer and the record that the
event was processed. So you can kill this program at any moment and start it again. With two commits, a crash
between them would move the money twice.
"""

import sqlite3
import sys
from contextlib import closing

import anyio

from push_to_poll_client import Consumer, DeadLetterMessage, Feed, HTTPFeed, Message, PushToPollError, SQLiteStore

TABLES = """
    CREATE TABLE IF NOT EXISTS account(name TEXT PRIMARY KEY, cents INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS transfer(id TEXT PRIMARY KEY, cents INTEGER NOT NULL);
"""


def make_tables(path: str) -> None:
    """Create the application's tables before the consumer runs, with a separate connection."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(TABLES)


class Transfers(Consumer):
    """Consumer whose handler writes to the store's file."""

    def __init__(self, feed: Feed, store: SQLiteStore) -> None:
        super().__init__(feed, store=store, name="transfers")
        self.store = store

    async def process(self, message: Message) -> None:
        """Make one transfer. An exception undoes all statements of this call."""
        event = message.data
        execute = self.store.connection.execute  # works only in the handler
        execute("INSERT INTO account VALUES (?, 0) ON CONFLICT DO NOTHING", (event["to"],))
        execute("UPDATE account SET cents = cents + ? WHERE name = ?", (event["cents"], event["to"]))
        execute("INSERT INTO transfer VALUES (?, ?)", (message.id, event["cents"]))
        pay = "UPDATE account SET cents = cents - :cents WHERE name = :from AND cents >= :cents"
        if not execute(pay, event).rowcount:
            raise DeadLetterMessage("the paying account does not exist or has too little money")


async def main(url: str, path: str) -> None:
    """Process transfers until the program is stopped."""
    make_tables(path)
    await Transfers(HTTPFeed(url), SQLiteStore(path, transactional=True)).run()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        anyio.run(lambda: main(*sys.argv[1:]))
    except PushToPollError as error:
        sys.exit(str(error))
