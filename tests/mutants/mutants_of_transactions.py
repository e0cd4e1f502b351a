"""Planted bugs of the transactions of handlers in PostgreSQL."""

from tests.mutants.mutant import of

TRANSACTION = "stores/_postgres/transaction.py"
SESSION = "stores/_postgres/transactional_session.py"
SCHEMA = "stores/_postgres/schema.py"


def seen_by(words, file="tests/stores/test_postgres_transactions.py"):
    """Return the arguments for pytest that run the tests whose names contain the words."""
    return file, "-k", words.replace(" ", "_")


PROGRAMS = "tests/docs/test_databases_postgres.py"

TRANSACTIONS = [
    of(
        "G8",
        "commits a handler's writes without its records",
        TRANSACTION,
        "        self._write(lambda connection: connection.wait(ask_server(connection, statement)))\n",
        '        self._write(lambda connection: connection.execute(b"COMMIT"))\n',
        *seen_by("each message has"),
    ),
    of(
        "G8",
        "commits a handler's writes before the records and the comparison of the owner",
        TRANSACTION,
        '        return f"SELECT \\"',
        '        return f"COMMIT; SELECT \\"',
        *seen_by("replaced owner", PROGRAMS),
    ),
    of(
        "G8",
        "does not compare the owner when a handler's records are written",
        SCHEMA,
        "                IF NOT FOUND THEN\n",
        "                IF false THEN\n",
        *seen_by("replaced owner", PROGRAMS),
    ),
    of(
        "G8",
        "does not notice a handler that has ended its transaction",
        SCHEMA,
        "                IF in_transaction IS NOT NULL\n",
        "                IF false\n",
        *seen_by("ends the transaction with sql"),
    ),
    of(
        "G8",
        "calls a handler again that has committed and raised",
        TRANSACTION,
        "        if has_ended:\n",
        "        if False:\n",
        *seen_by("commits and raises"),
    ),
    of(
        "G8",
        "lets a handler write on a connection of the application that commits each statement",
        TRANSACTION,
        "        if connection.autocommit and",
        "        if False and",
        *seen_by("autocommit"),
    ),
    of(
        "G8",
        "lets a connection object that was kept write into the next transaction",
        "stores/_postgres/handler_connections.py",
        "        self._check()\n        return super().wait",
        "        return super().wait",
        *seen_by("new connection object"),
    ),
    of(
        "G9",
        "counts a conflict as an attempt",
        TRANSACTION,
        '_CONFLICTS = ("40001", "40P01")\n',
        "_CONFLICTS = ()\n",
        *seen_by("ten conflicts"),
    ),
    of(
        "G9",
        "never counts a conflict as an attempt",
        TRANSACTION,
        "_MAX_CONFLICTS = 10\n",
        "_MAX_CONFLICTS = 100\n",
        *seen_by("ten conflicts"),
    ),
    of(
        "G9",
        "counts a lost connection as an attempt",
        TRANSACTION,
        "        if is_lost:\n",
        "        if False:\n",
        *seen_by("killed in a handler"),
    ),
    of(
        "G9",
        "counts a failure to connect as an attempt",
        TRANSACTION,
        "            raise type(self._refusal)(*self._refusal.args) from self._refusal\n",
        "            raise self._refusal\n",
        *seen_by("cannot connect"),
    ),
    of(
        "G9",
        "stops the consumer for a constraint that one message violates at the commit",
        TRANSACTION,
        "startswith((*_OF_DATA, *_CONFLICTS))",
        "startswith(_CONFLICTS)",
        *seen_by("deferred constraint"),
    ),
    of(
        "G9",
        "waits with every commit for the checks of one handler",
        TRANSACTION,
        "        if len(self._progress.transactions) > 1:\n",
        "        if False:\n",
        *seen_by("deferred check"),
    ),
    of(
        "G9",
        "repeats a handler for ever that idles in its transaction",
        TRANSACTION,
        "        if cause is not None and cause.sqlstate == _IDLE_TOO_LONG:\n",
        "        if False:\n",
        *seen_by("idles"),
    ),
    of(
        "G9",
        "calls a handler again that was cancelled after a conflict",
        TRANSACTION,
        "        if not isinstance(error, Exception):\n            return\n",
        "",
        *seen_by("cancellation after a conflict"),
    ),
    of(
        "G10",
        "leaves a transaction open if the lease ends before the handler",
        SESSION,
        "            if self._raw is not None:\n",
        "            if False:\n",
        *seen_by("ends before the handler"),
    ),
    of(
        "G13",
        "gives a connection the deadline of its last commit",
        TRANSACTION,
        "            connection.deadline = time.monotonic() + self.database.timeout\n",
        "",
        *seen_by("unused for long"),
    ),
]
