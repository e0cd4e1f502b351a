"""Another program that writes to a consumer's database in short transactions, until its input ends.

`python -m tests.chaos.chaos_writer DATABASE` then writes the number of its commits, and how often a lock exceeded
its timeout of 5 seconds.
"""

import json
import select
import sqlite3
import sys
from contextlib import closing

TIMEOUT = 5.0
"""Seconds to wait for a lock: the default of `sqlite3.connect`."""

PAUSE = 0.002
"""Seconds between its transactions."""


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(database):
    committed = locked_out = 0
    with closing(sqlite3.connect(database, timeout=TIMEOUT, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS visit(number INTEGER NOT NULL)")
        say("writes")
        while not select.select([sys.stdin], [], [], PAUSE)[0]:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                locked_out += 1
                continue
            connection.execute("INSERT INTO visit VALUES (?)", (committed,))
            connection.execute("COMMIT")
            committed += 1
    say(json.dumps({"committed": committed, "locked_out": locked_out}))


if __name__ == "__main__":
    main(*sys.argv[1:])
