"""`--store`: each command on a SQLite file and on PostgreSQL, with owners, and stores that cannot be used."""

import itertools
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

import anyio
import psycopg
import pytest
from anyio.from_thread import start_blocking_portal

from push_to_poll_client import DeadLetter, Push, Record, Settlement, SQLiteStore
from push_to_poll_client.cli import _stores
from push_to_poll_client.cli._output import Exit
from push_to_poll_client.stores._postgres import schema
from push_to_poll_client.stores._sqlite.schema import MIGRATIONS as SQLITE_MIGRATIONS
from push_to_poll_client.stores.postgres import PostgresStore
from push_to_poll_client.testing import serve_in_thread
from tests.support.command_line import on, stderr_lines, tail, typed
from tests.support.forms import GUARD
from tests.support.postgres_server import shared_server
from tests.support.postgres_stores import LEASE

PASSWORD = "canary-password"
OWNER = "web-2:311"

LETTERS = [
    DeadLetter(dedupe_key="12:https://shop42", id="42", raw=b'{"id":"42"}', error="ValueError: no such account"),
    DeadLetter(
        dedupe_key="\ud800\0", id="odd \x1b", raw=b"\xff", error="e\0", first_failed=1e9, last_failed=1e9 + 1
    ),
    DeadLetter(dedupe_key="b", id="42", raw=b"{}", error="e", retry_requested=True),
]

_schemas = itertools.count(1)


@pytest.fixture(autouse=True)
def _backend(monkeypatch):
    on("trio", monkeypatch)


@pytest.fixture
def server(pytestconfig):
    return shared_server(pytestconfig)


class Kind:
    """A kind of store: the arguments that name it, and a store object."""

    def __init__(self, arguments, make, *, change_tables):
        self.arguments = arguments
        self.make = make
        self.change_tables = change_tables  # executes a statement, with {s} before the name of a table

    def run(self, *command):
        """Run a command. Return its exit code."""
        return typed(*command, *self.arguments)

    def fill(self):
        """Let a consumer save something under two names."""

        async def commit():
            store = self.make()
            for name in ("orders", "stock"):
                session = await store.claim(name, feed=f"https://shop.example/{name}")
                await session.commit(cursor="c1", records=[Record(str(number)) for number in range(3)])
                await session.commit(
                    cursor="c2",
                    records=[Record(one.dedupe_key, Settlement.DEAD_LETTERED) for one in LETTERS],
                    dead_letters=LETTERS,
                    state={"attempts": '{"1":[1,0.0]}', "gap": '{"what":"lost 7","at":1000000001.0}'},
                )
                await session.release()
            await close(store)

        anyio.run(commit)
        return self

    @contextmanager
    def owned(self, **options):
        """Let a store object of this process own the name "orders" in the block."""
        with start_blocking_portal() as portal:
            store = self.make(**options)
            session = portal.call(partial(store.claim, "orders", feed="https://shop.example/orders"))
            yield session, store
            portal.call(session.release)
            portal.call(close, store)


async def close(store):
    if isinstance(store, PostgresStore):
        await store.aclose()


def sqlite(tmp_path):
    path = str(tmp_path / "orders.db")
    return Kind(["--store", f"sqlite:{path}"], lambda: SQLiteStore(path), change_tables=None)


@pytest.fixture
def file(tmp_path):
    return sqlite(tmp_path)


@pytest.fixture
def database(server):
    schema = f"command_{next(_schemas)}"
    yield Kind(
        ["--store", server.conninfo, "--schema", schema],
        lambda **options: PostgresStore(
            server.conninfo, schema=schema, lease=LEASE, **{"instance": OWNER, **options}
        ),
        change_tables=lambda statement: server.execute(statement.replace("{s}", f"{schema}.")),
    )
    server.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@pytest.fixture(params=["file", "database"])
def store(request):
    return request.getfixturevalue(request.param)


def out_of(capsys):
    out, err = capsys.readouterr()
    assert stderr_lines(err) == []
    return out.splitlines()


def sentence(capsys):
    """Return the one sentence of an error."""
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = stderr_lines(err)
    assert line.isprintable()
    assert line.startswith("push-to-poll: ")
    for hidden in (PASSWORD, "Traceback", "this is a bug"):
        assert hidden not in line
    return line.removeprefix("push-to-poll: ")


# Each command on each kind of store


def test_status_shows_the_progress_of_each_name(store, capsys):
    store.fill()
    assert store.run("status", "--json") == Exit.DONE
    (line,) = out_of(capsys)
    status = json.loads(line)
    assert status["bytes"] > 0
    assert [one["name"] for one in status["consumers"]] == ["orders", "stock"]
    orders = status["consumers"][0]
    age, last_progress = orders.pop("age"), orders.pop("last_progress")
    assert age < GUARD
    assert last_progress > 1e9
    assert orders == {
        "name": "orders",
        "feed": "https://shop.example/orders",
        "cursor": "c2",
        "records": 6,
        "dead_letters": 3,
        "failing": 1,
        "gap": "lost 7",
        "gap_at": 1000000001.0,
        "owner": None,
        "fencing_token": 1,
    }
    assert store.run("status") == Exit.DONE
    assert re.match(r"store     '.*'$", out_of(capsys)[0])


def test_a_store_without_a_consumer_has_an_empty_status(store, capsys):
    assert store.run("migrate") == Exit.DONE
    out_of(capsys)
    assert store.run("owners") == Exit.DONE
    assert out_of(capsys) == ["no consumers"]
    assert store.run("status", "--json") == Exit.DONE
    assert json.loads(out_of(capsys)[0])["consumers"] == []
    assert store.run("rewind", "--list") == Exit.STATE
    assert sentence(capsys).endswith(" contains no consumer yet; run a consumer with this store first")


def test_dead_letters_are_listed_shown_and_exported(store, capsys):
    store.fill()
    assert store.run("dead-letters", "--name", "orders", "export") == Exit.DONE
    exported = [json.loads(line) for line in out_of(capsys)]
    assert [one["dedupe_key"] for one in exported] == ["12:https://shop42", "b", "\\ud800\0"]
    assert [one["retry_requested"] for one in exported] == [False, True, False]
    assert exported[2]["raw_base64"] == "/w=="
    assert store.run("dead-letters", "list", "--name", "orders") == Exit.DONE
    assert [line[31:37].strip() for line in out_of(capsys)] == ["marked", "", "retry", ""]
    assert store.run("dead-letters", "show", "--name", "orders", r"odd \u001b") == Exit.DONE
    assert out_of(capsys)[0].split() == ["key", r"'\ud800\u0000'"]
    assert store.run("dead-letters", "show", "--name", "orders", "42") == Exit.USAGE
    assert "is the id of several dead letters; give a key instead: 12:https://shop42, b" in sentence(capsys)


def test_rewind_lists_the_saved_cursors_and_moves_the_next_run(store, capsys):
    store.fill()
    assert store.run("rewind", "--name", "orders", "--list") == Exit.DONE
    assert [line.split()[-1] for line in out_of(capsys)][-1] == "c2"
    assert store.run("rewind", "--name", "orders", "--to", "c1", "--forget") == Exit.DONE
    assert out_of(capsys)[:2] == ["before  c2", "now     c1"]
    assert store.run("rewind", "--name", "orders", "--ago", "0") == Exit.DONE
    assert out_of(capsys)[1] == "now     c1"
    store.run("status", "--json")
    orders = json.loads(out_of(capsys)[0])["consumers"][0]
    assert (orders["cursor"], orders["records"], orders["fencing_token"]) == ("c1", 0, 3)


def test_rebind_renames_a_consumer(store, capsys):
    store.fill()
    assert store.run("rebind", "--name", "orders", "--new-name", "stock") == Exit.USAGE
    assert "already has a consumer 'stock'" in sentence(capsys)
    assert store.run("rebind", "--name", "orders", "--new-name", "stock", "--replace") == Exit.DONE
    assert "deleted 6 records and 3 dead letters of the replaced consumer" in out_of(capsys)
    assert store.run("status", "--json") == Exit.DONE
    assert [(one["name"], one["feed"]) for one in json.loads(out_of(capsys)[0])["consumers"]] == [
        ("stock", "https://shop.example/orders")
    ]


def test_tail_continues_where_the_last_run_ended(store, capfdbinary):
    with serve_in_thread(backlog=3) as server:
        for expected in (3, 0):
            code, lines, err = tail(capfdbinary, server.url, "--once", "--name", "orders", *store.arguments)
            assert (code, len(lines), stderr_lines(err)) == (Exit.DONE, expected, [])


def test_the_commands_of_tail_get_no_password_of_the_store(store, tmp_path, capfdbinary, monkeypatch):
    monkeypatch.setenv("PUSH_TO_POLL_STORE", store.arguments[1])
    monkeypatch.setenv("PUSH_TO_POLL_SCHEMA", store.arguments[-1])
    with serve_in_thread(backlog=1) as server:
        command = f"{sys.executable} -c \"import os; print(os.environ.get('PUSH_TO_POLL_STORE'))\""
        assert typed("tail", server.url, "--once", "--name", "orders", "--exec", command) == Exit.DONE
    assert capfdbinary.readouterr().out == b"None\n"
    assert typed("status") == Exit.DONE
    assert b"'orders'" in capfdbinary.readouterr().out


def test_migrate_creates_the_tables_once(store, capsys):
    for done in ("created the tables, version", "the tables are up to date, version"):
        assert store.run("migrate") == Exit.DONE
        (line,) = out_of(capsys)
        assert re.fullmatch(rf".*: {done} \d+", line)


def test_migrate_updates_the_tables_of_an_older_version(database, capsys, monkeypatch):
    database.fill()
    step = schema.Migration(("CREATE TABLE {s}.later(id int)",), oldest_writer=1)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, step))
    before = len(schema.MIGRATIONS) - 1
    assert database.run("status") == Exit.STATE
    assert f"has tables of version {before}, and needs {before + 1}; run push-to-poll migrate" in sentence(capsys)
    assert database.run("migrate") == Exit.DONE
    assert out_of(capsys)[0].endswith(f": migrated the tables from version {before} to {before + 1}")
    assert database.run("status") == Exit.DONE


def test_migrate_updates_the_file_of_an_older_version(tmp_path, capsys):
    path = tmp_path / "orders.db"
    with sqlite3.connect(path) as older:
        older.execute("CREATE TABLE push_to_poll_schema AS SELECT 1 AS version")
        for statement in SQLITE_MIGRATIONS[0]:
            older.execute(statement)
    older.close()
    assert typed("migrate", "--store", str(path)) == Exit.DONE
    assert out_of(capsys) == [f"{path}: migrated the tables from version 1 to {len(SQLITE_MIGRATIONS)}"]


def test_migrate_changes_neither_a_file_in_use_nor_another_database(file, tmp_path, capsys):
    file.fill()
    with file.owned():
        assert file.run("migrate") == Exit.STATE
        assert f"is in use by process {os.getpid()}; stop it first" in sentence(capsys)
    foreign = tmp_path / "shop.db"
    with sqlite3.connect(foreign) as shop:
        shop.execute("CREATE TABLE orders(id)")
    shop.close()
    before = foreign.read_bytes()
    assert typed("migrate", "--store", str(foreign)) == Exit.STATE
    assert "is a database of another application" in sentence(capsys)
    assert foreign.read_bytes() == before


# A name that has an owner


@pytest.mark.parametrize(
    "command",
    [["rewind", "--to", "c1"], ["rebind", "--new-name", "x"], ["rebind", "--feed", "https://other.example/"]],
)
def test_a_command_that_changes_a_name_names_its_owner(store, capsys, command):
    store.fill()
    with store.owned():
        assert store.run(*command, "--name", "orders") == Exit.STATE
        error = sentence(capsys)
    owner = f"in use by process {os.getpid()}" if store.change_tables is None else f"'orders' is owned by {OWNER}"
    assert f"{owner}; stop it first" in error


def test_rebind_does_not_replace_a_name_that_has_an_owner(database, capsys):
    database.fill()
    with database.owned():
        assert database.run("rebind", "--name", "stock", "--new-name", "orders", "--replace") == Exit.STATE
        assert "the name 'orders' has an owner; release it, or use another name" in sentence(capsys)


def test_owners_shows_the_owner_of_each_name(database, capsys):
    database.fill()
    with database.owned(instance="web\x1b"):
        assert database.run("owners") == Exit.DONE
        lines = out_of(capsys)
        assert database.run("owners", "--json") == Exit.DONE
        orders, stock = map(json.loads, out_of(capsys))
    assert lines[0].split() == ["name", "token", "lease", "hand-over", "owner"]
    assert re.fullmatch(r"'orders' +2 +\d+\.\d s +web\\u001b", lines[1])
    assert re.fullmatch(r"'stock' +1 +none", lines[2])
    assert 0 < orders.pop("seconds_left") <= LEASE
    assert orders == {"name": "orders", "owner": "web\x1b", "wanted": False, "fencing_token": 2}
    assert stock == {"name": "stock", "owner": None, "seconds_left": None, "wanted": False, "fencing_token": 1}


def test_owners_shows_no_owner_after_the_end_of_a_lease(database, capsys):
    database.fill()
    with database.owned() as (session, _):
        database.change_tables("UPDATE {s}lease SET until = clock_timestamp()")
        assert database.run("owners") == Exit.DONE
        assert [line.split()[-1] for line in out_of(capsys)] == ["owner", "none", "none"]
        assert session.fencing_token == 2


def test_owners_shows_the_process_that_uses_a_file(file, capsys):
    file.fill()
    with file.owned():
        assert file.run("owners") == Exit.DONE
        lines = out_of(capsys)
    assert [line.split()[2:] for line in lines[1:]] == [["process", str(os.getpid())]] * 2


def test_release_asks_the_owner_to_hand_over(database, capsys):
    database.fill()
    with database.owned() as (session, _):
        wanted = threading.Event()
        session.subscribe(changed=wanted.set, wake=lambda push: None)
        assert database.run("release", "orders") == Exit.DONE
        assert out_of(capsys) == [f"{OWNER} is asked to hand over 'orders'; push-to-poll owners shows the result"]
        assert wanted.wait(GUARD)
        assert session.wanted
        assert database.run("owners") == Exit.DONE
        assert "asked" in out_of(capsys)[1]


def test_release_of_a_name_without_an_owner_is_an_error(store, capsys):
    store.fill()
    assert store.run("release", "orders") == Exit.STATE
    assert sentence(capsys).endswith("; nothing has to be released")


def test_release_of_an_unknown_name_shows_the_names(store, capsys):
    store.fill()
    assert store.run("release", PASSWORD) == Exit.USAGE
    assert sentence(capsys) == "NAME is not a consumer of the store; choose one of 'orders', 'stock'"


def test_release_of_a_file_names_the_process_to_stop(file, capsys):
    file.fill()
    with file.owned():
        assert file.run("release", "orders") == Exit.STATE
        assert sentence(capsys).endswith(
            f"cannot be asked to hand over; stop process {os.getpid()}, and a replica that stands by takes over"
        )


@pytest.mark.parametrize(("action", "does"), [("retry", "retries"), ("drop", "drops")])
def test_dead_letters_in_a_database_are_marked_for_the_owner_who_is_woken(database, capsys, action, does):
    database.fill()
    with database.owned() as (session, store):
        wakes = SimpleQueue()
        session.subscribe(changed=lambda: None, wake=wakes.put)
        store.forward("orders", Push("the store hears wakes"))
        while wakes.get(timeout=GUARD) is None:
            pass
        keys = ["12:https://shop42", r"odd \u001b"]
        assert database.run("dead-letters", "--name", "orders", action, *keys) == Exit.DONE
        who = f"the owner of the name {does} them at its next poll, or the next run does if there is none"
        assert out_of(capsys) == [f"2 dead letters are marked; {who}"]
        assert wakes.get(timeout=GUARD) is None
        assert database.run("dead-letters", "--name", "orders", "list") == Exit.DONE
        assert [line[31:37].strip() for line in out_of(capsys)] == ["marked", action, "retry", action]
        assert database.run("dead-letters", "--name", "stock", "list") == Exit.DONE
        assert [line[31:37].strip() for line in out_of(capsys)] == ["marked", "", "retry", ""]


def test_a_mark_to_retry_replaces_a_mark_to_drop(database, capsys):
    database.fill()
    assert database.run("dead-letters", "--name", "orders", "drop", "b") == Exit.DONE
    assert database.run("dead-letters", "--name", "orders", "retry", "--all") == Exit.DONE
    assert out_of(capsys)[1].startswith("3 dead letters are marked")
    assert database.run("dead-letters", "--name", "orders", "list", "--json") == Exit.DONE
    letters = [json.loads(line) for line in out_of(capsys)]
    assert {(one["retry_requested"], one["drop_requested"]) for one in letters} == {(True, False)}


def test_the_next_run_drops_and_retries_what_is_marked_in_a_database(database, capfdbinary):
    with serve_in_thread(backlog=2) as server:
        follow = ["tail", server.url, "--once", "--name", "orders", *database.arguments]
        failing = ["--exec", "false", "--exec-attempts", "1", "--on-failure", "dead-letter"]
        assert typed(*follow, *failing) == Exit.DONE
        assert database.run("dead-letters", "list", "--json") == Exit.DONE
        first, second = [json.loads(line)["dedupe_key"] for line in capfdbinary.readouterr().out.splitlines()]
        assert database.run("dead-letters", "retry", first) == Exit.DONE
        assert database.run("dead-letters", "drop", second) == Exit.DONE
        capfdbinary.readouterr()
        code, lines, _ = tail(capfdbinary, *follow[1:])
        assert code == Exit.DONE
        assert len(lines) == 1, "the message that was to be retried"
        assert database.run("dead-letters", "list") == Exit.DONE
        assert capfdbinary.readouterr().out == b"no dead letters\n"


# Stores that cannot be used


READS = [["status"], ["owners"], ["dead-letters", "list"], ["rewind", "--list"]]
CHANGES = [
    ["release", "orders"],
    ["dead-letters", "retry", "--all"],
    ["rewind", "--to", "c"],
    ["rebind", "--new-name", "x"],
]


@pytest.mark.parametrize("command", [*READS, *CHANGES], ids=lambda words: words[0])
def test_a_database_without_the_tables_is_reported(database, capsys, command):
    assert database.run(*command) == Exit.STATE
    assert re.fullmatch(
        r"StoreError: the schema command_\d+ of postgresql://127\.0\.0\.1:\d+/postgres has no tables; run "
        r"push-to-poll migrate, or create the store with migrate=True",
        sentence(capsys),
    )


@pytest.mark.parametrize("command", [["status"], ["release", "orders"], ["migrate"]], ids=lambda words: words[0])
def test_tables_of_a_newer_version_are_reported(database, capsys, command):
    database.fill()
    database.change_tables("UPDATE {s}version SET version = 99, oldest_writer = 99")
    assert database.run(*command) == Exit.STATE
    assert "its tables have version 99, which this version of push_to_poll_client cannot use" in sentence(capsys)


def url_of(server, user, password):
    return f"postgresql://{user}:{password}@127.0.0.1:{server.port}/postgres"


@pytest.fixture
def locked(server):
    """A user who needs a password and has no rights."""
    server.execute(f"CREATE ROLE locked LOGIN PASSWORD '{PASSWORD}'")
    yield url_of(server, "locked", PASSWORD)
    server.execute("DROP OWNED BY locked", "DROP ROLE locked")


@pytest.mark.parametrize(
    "command", [*READS, ["migrate"], ["tail", "http://127.0.0.1:1/", "--once"]], ids=lambda words: words[0]
)
def test_a_wrong_password_is_reported(server, locked, capsys, command):
    wrong = url_of(server, "locked", f"{PASSWORD}-wrong")
    assert typed(*command, "--store", wrong) == Exit.STATE
    assert "password authentication failed for user" in sentence(capsys)


@pytest.mark.parametrize("command", [["status"], ["release", "orders"], ["migrate"]], ids=lambda words: words[0])
def test_a_user_without_rights_is_reported(database, locked, capsys, command):
    database.fill()
    assert typed(*command, "--store", locked, *database.arguments[2:]) == Exit.STATE
    assert "permission denied for schema" in sentence(capsys)


def test_a_user_who_may_only_read_can_read(database, locked, capsys):
    database.fill()
    schema = database.arguments[-1]
    database.change_tables(f"GRANT USAGE ON SCHEMA {schema} TO locked")
    database.change_tables(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO locked")
    arguments = ["--store", locked, *database.arguments[2:]]
    for command in (["status"], ["owners"], ["dead-letters", "--name", "orders", "list"]):
        assert typed(*command, *arguments) == Exit.DONE
        out_of(capsys)
    for command in (["release", "orders"], ["dead-letters", "--name", "orders", "retry", "--all"]):
        assert typed(*command, *arguments) == Exit.STATE
        assert "permission denied for table" in sentence(capsys)


def test_a_server_that_does_not_run_is_reported(capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening
        port = unused.getsockname()[1]
        for command in (*READS, *CHANGES, ["migrate"]):
            assert typed(*command, "--store", f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/shop") == Exit.STATE
            error = sentence(capsys)
            assert f"the schema push_to_poll of postgresql://127.0.0.1:{port}/shop" in error
            assert "Connection refused" in error


def test_a_server_that_never_answers_is_reported(capsys):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://me:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}/shop?connect_timeout=2"
        assert typed("status", "--store", url) == Exit.STATE
    assert "timeout" in sentence(capsys)


def test_a_server_that_hangs_during_a_command_is_reported(database, server, capsys, monkeypatch):
    database.fill()
    monkeypatch.setattr(_stores, "DATABASE_TIMEOUT", 0.3)
    with psycopg.connect(server.conninfo) as blocking:
        blocking.execute(f"LOCK TABLE {database.arguments[-1]}.consumer IN ACCESS EXCLUSIVE MODE")
        for command in (["status"], ["release", "orders"]):
            assert database.run(*command) == Exit.STATE
            assert re.search(
                "did not answer in time|due to lock timeout|due to statement timeout", sentence(capsys)
            )


@pytest.fixture
def _empty(tmp_path, monkeypatch):
    """Use an empty directory, and check that it stays empty."""
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            f"mysql://me:{PASSWORD}@db/shop",
            "--store must be a file, sqlite:FILE, or a URL that starts with postgresql://",
        ),
        (f"postgresql:me:{PASSWORD}@db/shop", "--store must be a file"),
        (f"POSTGRESQL://me:{PASSWORD}@db/shop", "--store must be a file"),
        (f"postgresql+psycopg://me:{PASSWORD}@db/shop", "--store must be a file"),
        (f"host=db password={PASSWORD}", "--store must be a file"),
        (f"postgresql://me:{PASSWORD}/shop", "--store: conninfo has a port that is not a number"),
        (f"postgresql://me:{PASSWORD}/@db/shop", "--store: "),
        (f"postgresql://db/shop?pass={PASSWORD}", "--store: libpq cannot parse"),
        ("sqlite:///orders.db", "--store: write sqlite:orders.db or sqlite:/srv/orders.db, without //"),
        ("sqlite:", "--store must name a file"),
        (":memory:", "--store must name a file"),
    ],
)
@pytest.mark.parametrize(
    "command", [["status"], ["tail", "http://127.0.0.1:1/", "--once"]], ids=lambda words: words[0]
)
@pytest.mark.usefixtures("_empty")
def test_a_value_that_names_no_store_is_reported_without_it(monkeypatch, capsys, command, given, why):
    assert typed(*command, "--store", given) == Exit.USAGE
    assert sentence(capsys).startswith(why)
    monkeypatch.setenv("PUSH_TO_POLL_STORE", given)
    assert typed(*command) == Exit.USAGE
    assert sentence(capsys).startswith(why.replace("--store", "PUSH_TO_POLL_STORE", 1))


def test_a_schema_needs_a_database(tmp_path, capsys):
    assert typed("status", "--store", str(tmp_path / "orders.db"), "--schema", "shop") == Exit.USAGE
    assert sentence(capsys) == "--schema is for PostgreSQL; leave it out, or give a postgresql:// URL"
    assert typed("status", "--schema", "shop") == Exit.USAGE
    assert sentence(capsys) == "--schema needs --store with a postgresql:// URL; add it, or leave out --schema"


@pytest.mark.parametrize("schema", ["", "1", "a-b", 'a"b', PASSWORD, "x" * 49])
def test_a_schema_that_the_store_cannot_have_is_reported(server, capsys, schema):
    assert typed("status", "--store", server.conninfo, "--schema", schema) == Exit.USAGE
    assert "--schema must be" in sentence(capsys)


def test_a_missing_psycopg_is_reported():
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from push_to_poll_client.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["status", "--store", f"postgresql://me:{PASSWORD}@db/shop"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], check=False, capture_output=True, text=True, timeout=GUARD
    )
    assert done.returncode == Exit.USAGE
    assert done.stderr.startswith("push-to-poll: --store: PostgresStore needs psycopg: pip install ")
    assert PASSWORD not in done.stderr


def test_the_password_of_the_url_is_used_and_not_shown(database, locked, server, capsys):
    database.change_tables("GRANT CREATE ON DATABASE postgres TO locked")
    arguments = ["--store", locked, "--schema", database.arguments[-1]]
    assert typed("migrate", *arguments) == Exit.DONE
    for command in (["migrate"], ["status"], ["owners"]):
        assert typed(*command, *arguments) == Exit.DONE
        assert PASSWORD not in "".join(out_of(capsys))
    server.execute(
        f"DROP SCHEMA {database.arguments[-1]} CASCADE", "REVOKE CREATE ON DATABASE postgres FROM locked"
    )
