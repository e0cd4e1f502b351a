"""`push-to-poll owners`, `release` and `migrate`: owners of names, hand-overs, and the tables of a store."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict

from push_to_poll_client._validation import quoted
from push_to_poll_client.cli._output import escape_unprintable, print_lines
from push_to_poll_client.cli._parser import Commands
from push_to_poll_client.cli._stores import add_store_to, find_consumer, require_store
from push_to_poll_client.stores.reader import StoreSnapshot

JSON_HELP = """\
print one JSON object per line, with the members name, owner (null: no owner is visible), seconds_left (until its
lease ends if it is not renewed; null: no owner, or a SQLite file, which has no leases), wanted (true: the owner is
asked to hand over) and fencing_token (increases with each claim). Later versions may add members, but do not
change these"""


def add_to(commands: Commands) -> None:
    parser = commands.add(
        "owners",
        print_owners,
        help="show which process owns each consumer name",
        description="Show which process owns each consumer name of a store. The command only reads, and does not "
        "disturb a running consumer.",
    )
    add_store_to(parser)
    parser.add_argument("--json", action="store_true", help=JSON_HELP)

    parser = commands.add(
        "release",
        release,
        help="ask the owner of a name to hand over to another replica",
        description="Ask the owner of a consumer name to hand over. It finishes the message in flight and "
        "releases the name, and a replica that stands by takes over. If there is none, the owner takes the name "
        "back after 2 seconds. This needs PostgreSQL. A consumer with a SQLite file hands over when its process "
        "is stopped.",
    )
    add_store_to(parser)
    parser.add_argument("name", metavar="NAME", help="the consumer's name, as owners shows it")

    parser = commands.add(
        "migrate",
        migrate,
        help="create the tables of a store, or bring those of an older version up to date",
        description="Create the tables of a store, or bring those of an older version up to date. Consumers do "
        "this when they start, unless their store has migrate=False. In PostgreSQL it works while consumers run, "
        "but a SQLite file must not be in use.",
    )
    add_store_to(parser)


def print_owners(options: argparse.Namespace) -> None:
    snapshot = require_store(options).reader.snapshot()
    print_lines((json.dumps(asdict(one)) for one in snapshot.owners) if options.json else _table(snapshot))


def _table(snapshot: StoreSnapshot) -> Iterator[str]:
    if not snapshot.owners:
        yield "no consumers"
        return
    yield _row("name", "token", "lease", "hand-over", "owner")
    for one in snapshot.owners:
        left = "" if one.seconds_left is None else f"{one.seconds_left:.1f} s"
        owner = "none" if one.owner is None else escape_unprintable(one.owner)
        yield _row(quoted(one.name), str(one.fencing_token), left, "asked" if one.wanted else "", owner)


def _row(name: str, token: str, lease: str, hand_over: str, owner: str) -> str:
    return f"{name:<30}  {token:>8}  {lease:>8}  {hand_over:<9}  {owner}"


def release(options: argparse.Namespace) -> None:
    """Ask the owner of a name to hand over."""
    store = require_store(options)
    progress = find_consumer(options, store, argument="NAME")
    owner = store.request_hand_over(progress)
    done = f"{escape_unprintable(owner)} is asked to hand over {quoted(progress.name)}"
    print_lines([f"{done}; push-to-poll owners shows the result"])


def migrate(options: argparse.Namespace) -> None:
    """Create or migrate the tables, and print the versions."""
    store = require_store(options)
    before, after = store.migrate()
    if before == 0:
        done = f"created the tables, version {after}"
    elif before < after:
        done = f"migrated the tables from version {before} to {after}"
    else:
        done = f"the tables are up to date, version {after}"
    print_lines([f"{escape_unprintable(store.where)}: {done}"])
