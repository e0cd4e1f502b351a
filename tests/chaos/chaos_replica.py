"""A replica of a consumer with a store in PostgreSQL, forked by `chaos_fork_server.py`.

With `transfers`, its handler moves money in the transaction of the store: as a coroutine, or as a function that
runs in a worker thread.
"""

import functools
import time

import anyio

from push_to_poll_client.stores.postgres import PostgresStore
from tests.chaos import chaos_consumer
from tests.chaos.chaos_bank import transfer

ACCOUNT = "UPDATE chaos.account SET balance = balance + %s WHERE number = %s"
TRANSFER = "INSERT INTO chaos.transfer(number) VALUES (%s)"


def steps(message):
    """Return the statements of a transfer. A kill may come in between."""
    number = int(message.id)
    payer, payee, amount = transfer(number)
    return [(ACCOUNT, (-amount, payer)), (TRANSFER, (number,)), (ACCOUNT, (amount, payee))]


class Coroutine(chaos_consumer.Orders):
    async def process(self, message):
        self._journal.write("enters", self._life, message.id, time.monotonic())
        for statement, values in steps(message):
            await self._store.connection.execute(statement, values)
        await anyio.sleep(self._takes)
        self._journal.write("leaves", self._life, message.id, time.monotonic())


class Function(chaos_consumer.Orders):
    def process(self, message):
        self._journal.write("enters", self._life, message.id, time.monotonic())
        for statement, values in steps(message):
            self._store.connection.execute(statement, values)
        time.sleep(self._takes)
        self._journal.write("leaves", self._life, message.id, time.monotonic())


async def main(*, transfers, client, database, consumer, **settings):
    """Run it until SIGTERM.

    Args:
        transfers: Kind of handler that moves money, "coroutine" or "function"; `None` for no effects.
        client: Name of this process.
        database: Arguments of the store.
        consumer: Arguments for `Consumer`.
        settings: As for `chaos_consumer.main`.
    """
    kind = {"coroutine": Coroutine, "function": Function, None: chaos_consumer.Orders}[transfers]
    database = {**database, "conninfo": f"{database['conninfo']}?application_name={client}"}
    consumer = {**consumer, "dedupe_key": lambda message: message.id}  # the key that the verdicts know
    open_store = functools.partial(open_postgres, **({"transactional": True} if transfers else {}))
    await chaos_consumer.main(
        **settings, client=client, database=database, consumer=consumer, open_store=open_store, kind=kind
    )


def open_postgres(database, **settings):
    return PostgresStore(**database, **settings, migrate=False)
