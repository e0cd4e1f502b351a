"""Hostile or damaged state files: one clear `StoreError` at once, and an unchanged file.

The store and `push-to-poll status` open each file in another process; neither may hang or grow.
"""

import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from push_to_poll_client import DeadLetter, Record, SQLiteStore
from tests.hostile.measured import EVIL, LONGEST_LINE, MIB
from tests.support.forms import form

pytestmark = pytest.mark.slow

PAGE_SIZE = 1024
"""Bytes of a page of a new store."""

LIMIT = 64 * MIB
"""Bytes by which a process may grow when it opens a file: SQLite's cache is 8 MB, and a row is read whole."""


@pytest.fixture
def opened(victims):
    """Open a file like a consumer. Return the class and text of an error, or what a session read."""

    def opened(path, **options):
        report = victims.attacked("store", "asyncio", path=str(path), **options)
        assert report["peak"] <= LIMIT
        kind, *said = report["said"]
        if kind != "used":
            check(*said)
        return kind, *said

    return opened


@pytest.fixture
def status(victims):
    """Run `push-to-poll status` and return its exit code."""

    def status(path):
        report = victims.attacked("status", "asyncio", path=str(path))
        check(*report["out"].splitlines(), *report["err"].splitlines())
        assert report["err"].count("\n") == (report["code"] != 0)
        return report["code"]

    return status


def check(*lines):
    for line in lines:
        assert line.isprintable()
        assert len(line) < LONGEST_LINE


@pytest.fixture
def refused(opened, status):
    """Check that both refuse the file in one sentence, and that it is unchanged."""

    def refused(path):
        before = fingerprint(path)
        kind, text = opened(path)
        assert kind in {"StoreError", "StoreMismatch"}, text
        assert status(path) == 5
        assert fingerprint(path) == before
        return text

    return refused


def fingerprint(path):
    return path.read_bytes() if path.is_file() and path.stat().st_size < 100 * MIB else os.lstat(path).st_mode


async def _make(path, records):
    session = await SQLiteStore(path).claim("c", feed="f")
    await session.commit(cursor="saved", records=[Record(f"k{n}") for n in range(records)])
    letter = DeadLetter(dedupe_key="dead", id="dead", raw=b"raw", error="broken")
    await session.commit(cursor="saved", records=[Record("a")], dead_letters=[letter], state={"s": "1"})
    await session.release()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


@pytest.fixture
def store(path):
    """Return a store with some pages."""
    anyio.run(_make, path, 200)
    return path


def change(path, *statements, values=()):
    with closing(sqlite3.connect(path)) as file:
        for statement in statements:
            file.execute(statement, values if "?" in statement else ())
        file.commit()
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")


# Not a database


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(random.Random(1).randbytes(64 * PAGE_SIZE), id="junk"),  # noqa: S311
        pytest.param(bytes(64 * PAGE_SIZE), id="zeros"),
        pytest.param(b"\x1b[31m" * 1000, id="text"),
        pytest.param(b"x", id="a byte"),
        pytest.param(b"SQLite format 3\0", id="a magic"),
        pytest.param(b"SQLite format 3\0" + b"\xff" * (8 * PAGE_SIZE - 16), id="a magic and more"),
        pytest.param(b"SQLite format 3\0" + bytes(8 * PAGE_SIZE - 16), id="a magic and zeros"),
    ],
)
def test_a_file_that_is_not_a_database_is_refused(refused, path, content):
    path.write_bytes(content)
    refused(path)


def test_a_huge_sparse_file_is_refused(refused, path):
    with path.open("wb") as file:
        file.truncate(10 << 30)
    refused(path)


def test_an_empty_file_is_a_new_store(opened, path):
    path.touch()
    assert opened(path) == ("used", None, ["a", "b"])


# Not a regular file


def test_a_directory_as_the_state_file_is_refused(refused, path):
    path.mkdir()
    refused(path)


def test_a_named_pipe_as_the_state_file_is_refused_and_does_not_hang(refused, path):
    os.mkfifo(path)
    refused(path)


@pytest.mark.parametrize("device", form(["/dev/zero"], ["/dev/null", "/dev/zero", "/dev/full"]))
def test_a_device_as_the_state_file_is_refused(opened, status, path, device):
    path.symlink_to(device)
    lock = Path(f"{device}.lock")
    existed = lock.exists()
    try:
        kind, _ = opened(path)
        assert kind == "StoreError"
        assert status(path) == 5
    finally:
        if not existed:
            lock.unlink(missing_ok=True)  # beside the device, where it has to be


def test_a_loop_of_symbolic_links_is_refused(refused, path):
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)
    refused(path)


def test_a_symbolic_link_to_a_missing_directory_is_refused(refused, path):
    path.symlink_to(path.parent / "missing" / "state.db")
    refused(path)


@pytest.mark.parametrize("name", ["\x1b[31m\n.db", "\u202e.db", "x" * 250, "\udcff.db"])
def test_status_escapes_control_characters_in_the_path_of_the_state_file(status, tmp_path, name):
    assert status(tmp_path / name / "state.db") == 5


# A store that was harmed


def offsets(size):
    """Return each page boundary, and offsets in between."""
    pages = range(PAGE_SIZE, size, PAGE_SIZE)
    chosen = [*pages, *random.Random(2).sample(range(1, size), 60)]  # noqa: S311
    return form(chosen[:: len(chosen) // 6], chosen)


def test_a_truncated_store_is_refused_at_any_length(opened, store):
    whole = store.read_bytes()
    for size in offsets(len(whole)):
        store.write_bytes(whole[:size])
        kind, _ = opened(store)
        assert kind == "StoreError", size


def test_a_store_with_a_damaged_page_is_read_or_refused_with_a_store_error(opened, store):
    """Damage inside a page may stay undetected, but must not cause another exception or a wrong cursor."""
    whole = store.read_bytes()
    dice = random.Random(3)  # noqa: S311
    for _ in range(form(6, 200)):
        at = dice.randrange(len(whole))
        harmed = bytearray(whole)
        harmed[at : at + 64] = dice.randbytes(min(64, len(whole) - at))
        store.write_bytes(harmed)
        said = opened(store)
        assert said[0] in {"used", "StoreError", "StoreMismatch"}, (at, said)
        for side in ("-wal", "-shm"):
            Path(f"{store}{side}").unlink(missing_ok=True)


def test_a_schema_with_undecodable_bytes_is_reported_as_damaged(opened, store):
    """SQLite quotes the bytes, and Python cannot decode the error text."""
    words = b"CREATE TABLE push_to_poll_record"
    harmed = store.read_bytes().replace(words, words.replace(b"TABLE", b"T\x9d\x9d\x9dE"), 1)
    assert harmed != store.read_bytes()
    store.write_bytes(harmed)
    kind, text = opened(store)
    assert (kind, "damaged" in text, "does not write" in text) == ("StoreError", True, True)


def test_a_database_of_another_application_is_refused(refused, path):
    change(path, "CREATE TABLE consumer(x)")
    assert "another application" in refused(path)


def test_a_newer_schema_version_is_refused(refused, store):
    change(store, "UPDATE push_to_poll_schema SET version = 99")
    assert "newer" in refused(store)


def test_a_negative_schema_version_is_refused_as_damaged(refused, store):
    change(store, "UPDATE push_to_poll_schema SET version = -1")
    assert "damaged" in refused(store)


# A store with a foreign schema or foreign rows


TRIGGER = "CREATE TRIGGER e AFTER UPDATE ON push_to_poll_consumer BEGIN"
ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT "


@pytest.mark.parametrize(
    "statements",
    [
        ["DROP TABLE push_to_poll_record"],
        ["DROP TABLE push_to_poll_consumer"],
        ['ALTER TABLE push_to_poll_consumer RENAME COLUMN cursor TO "\x1b[31m\n"'],
    ],
)
def test_a_missing_table_or_a_renamed_column_is_a_store_error(opened, store, statements):
    change(store, *statements)
    kind, _ = opened(store)
    assert kind == "StoreError"


@pytest.mark.parametrize(
    "statements",
    [
        [
            "DROP TABLE push_to_poll_consumer",
            f"CREATE VIEW push_to_poll_consumer AS {ENDLESS} n AS id, 'c' AS name, 'f' AS feed FROM r",
        ],
        [
            "DROP TABLE push_to_poll_record",
            f"CREATE VIEW push_to_poll_record AS {ENDLESS} 1 AS consumer, 1 AS segment, n AS key FROM r",
        ],
        [f"{TRIGGER} SELECT raise(ABORT, '\x1b[31m\nall is lost'); END"],
        [f"{TRIGGER} UPDATE push_to_poll_consumer SET cursor = 'evil' || token; END"],  # noqa: S608
    ],
)
def test_a_schema_with_an_unknown_view_or_trigger_is_refused(refused, store, statements):
    change(store, *statements)
    refused(store)


def test_a_virtual_table_is_refused_by_the_store_and_ignored_by_status(opened, status, store):
    change(store, "CREATE VIRTUAL TABLE evil USING fts5(x)")
    assert opened(store)[0] == "StoreError"
    assert status(store) == 0


VALUES = [
    ("consumer.cursor", b"\xff\xfe\x00"),
    ("consumer.cursor", b"x" * (10 * MIB)),
    ("consumer.cursor", EVIL),
    ("consumer.cursor", 5),
    ("consumer.cursor", 1.5),
    ("consumer.at", EVIL),
    ("consumer.at", "\ud800".encode(errors="surrogatepass")),
    ("consumer.token", EVIL),
    ("consumer.token", b"x"),
    ("consumer.token", 2**63 - 1),
    ("consumer.token", 1.5),
    ("consumer.first", EVIL),
    ("consumer.first", 2**62 - 1),
    ("consumer.behind", b"x" * MIB),
    ("consumer.feed", EVIL * 10_000),
    ("consumer.feed", b"\xff" * MIB),
    ("consumer.feed", 5),
    ("segment.number", 2**62 - 1),
    ("segment.size", EVIL),
    ("segment.size", 2**62 - 1),
    ("segment.low", b"\xff" * MIB),
    ("segment.high", b""),
    ("segment.last_at", EVIL),
    ("record.key", b"\xff" * MIB),
    ("record.state", EVIL),
    ("dead_letter.raw", EVIL * 10_000),
    ("dead_letter.error", b"\xff" * MIB),
    ("dead_letter.known_as", b"x"),
    ("history.number", 2**63 - 1),
    ("history.at", EVIL),
    ("state.value", b"\xff" * MIB),
]


def each_column_in_short(values):
    """Return parameters: the first value of each column; in the long form all values."""
    seen = set()
    for column, value in values:
        yield pytest.param(column, value, marks=pytest.mark.long_form if column in seen else ())
        seen.add(column)


@pytest.mark.parametrize(("column", "value"), list(each_column_in_short(VALUES)))
def test_a_column_value_of_a_wrong_type_is_read_or_refused_with_a_store_error(
    opened, status, store, column, value
):
    table, column = column.split(".")
    one = "WHERE key = 'k1'" if table == "record" else ""
    change(store, f"UPDATE push_to_poll_{table} SET {column} = ? {one}", values=[value])  # noqa: S608
    kind, *_ = opened(store)
    assert kind in {"used", "StoreError", "StoreMismatch"}
    assert status(store) in {0, 5}


# A disk that means harm


def test_a_full_disk_is_an_unavailable_store_for_a_new_store(opened, path):
    kind, _ = opened(path, room=2048)
    assert kind == "StoreUnavailable"


def test_a_full_disk_is_an_unavailable_store_and_leaves_an_existing_store_usable(opened, store):
    kind, _ = opened(store, room=2048)
    assert kind == "StoreUnavailable"
    assert opened(store) == ("used", "saved", ["b"])


def test_a_write_lock_of_another_program_is_an_unavailable_store_after_a_limited_wait(opened, store):
    with closing(sqlite3.connect(store, isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")
        kind, text = opened(store)
    assert kind == "StoreUnavailable"
    assert "another program has kept a" in text
