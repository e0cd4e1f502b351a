"""Money that moves exactly once: a consumer whose handler writes to the store's own database.

    python examples/transfers.py https://bank.example/transfers bank.db

The feed follows the HTTP Feeds specification (http-feeds.org). Each event, a CloudEvent with `{"from": …, "to": …,
"cents": …}`, moves money between two accounts. What it moves is committed together with the record that it was
processed, or not at all: kill this at any instant, and start it again, as often as you like. Were the two
committed one after the other, a crash between them would move it twice.
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
    """Tables are the application's, and made through a connection of its own, before the consumer runs."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(TABLES)


class Transfers(Consumer):
    """Moves money."""

    def __init__(self, feed: Feed, store: SQLiteStore) -> None:
        super().__init__(feed, store=store, name="transfers")
        self.store = store

    async def process(self, message: Message) -> None:
        """Move it: all statements or none. What raises here takes all of them back."""
        event = message.data
        execute = self.store.connection.execute  # here and now: outside there is none
        execute("INSERT INTO account VALUES (?, 0) ON CONFLICT DO NOTHING", (event["to"],))
        execute("UPDATE account SET cents = cents + ? WHERE name = ?", (event["cents"], event["to"]))
        execute("INSERT INTO transfer VALUES (?, ?)", (message.id, event["cents"]))
        pay = "UPDATE account SET cents = cents - :cents WHERE name = :from AND cents >= :cents"
        if not execute(pay, event).rowcount:
            raise DeadLetterMessage("the account that pays is not there, or has not so much")


async def main(url: str, path: str) -> None:
    """Move what the feed says, until it is stopped."""
    make_tables(path)
    await Transfers(HTTPFeed(url), SQLiteStore(path, transactional=True)).run()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        anyio.run(lambda: main(*sys.argv[1:]))
    except PushToPollError as error:
        sys.exit(str(error))
