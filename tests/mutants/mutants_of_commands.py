"""Planted bugs in the commands, in readers of stores, and in requests to the owner of a name."""

from tests.mutants.mutant import of

COMMANDS_ON_STORES = "tests/cli/test_stores.py"
POSTGRES_READER = "tests/stores/test_postgres_reader.py"
SQLITE_READER = "tests/stores/test_sqlite_reader.py"
DEAD_LETTERS = "tests/core/test_dead_letters.py"

COMMANDS = [
    of(
        "G9",
        "looks for marked dead letters at the start only",
        "_poller.py",
        "if not self._is_prepared or self._is_shared:",
        "if not self._is_prepared:",
        DEAD_LETTERS,
    ),
    of(
        "G9",
        "retries a dead letter that is to be dropped",
        "_dead_letters.py",
        "await (self.drop(last) if last.drop_requested else self.try_again(last))",
        "await self.try_again(last)",
        DEAD_LETTERS,
    ),
    of(
        "G9",
        "marks the dead letters of all names",
        "stores/_postgres/requests.py",
        "    WHERE consumer = %(consumer)s AND (%(digests)b",
        "    WHERE (%(digests)s",
        POSTGRES_READER,
    ),
    of(
        "G9",
        "does not wake the owner for a request",
        "stores/_postgres/requests.py",
        "    _notify(database, Notice(Kind.WAKE, digest_of(name)))\n",
        "",
        COMMANDS_ON_STORES,
    ),
    of(
        "G10",
        "shows a former owner whose lease has ended",
        "stores/_postgres/reader.py",
        " AND lease.until > clock_timestamp() THEN",
        " THEN",
        COMMANDS_ON_STORES,
    ),
    of(
        "G10",
        "opens a file as its owner while the same process reads it",
        "stores/_sqlite/reader.py",
        "        one_opening,\n",
        "",
        SQLITE_READER,
    ),
    of(
        "G12",
        "gives the commands of tail the URL of the store",
        "cli/_tail.py",
        "    secrets.add(STORE_VARIABLE)  # its URL may contain a password\n",
        "",
        COMMANDS_ON_STORES,
    ),
    of(
        "G12",
        "shows a port that is a password",
        "stores/_postgres/connection.py",
        'if re.search("[^0-9,]", str(given.get("port") or "")):',
        "if False:",
        COMMANDS_ON_STORES,
    ),
    of(
        "G12",
        "takes connection settings with a password for a file and shows them",
        "cli/_stores.py",
        "_OTHER_URL.match(path) or _KEY_VALUE.match(path)",
        "_OTHER_URL.match(path)",
        COMMANDS_ON_STORES,
    ),
]
