"""Reading a store's file without disturbing its owner, in every state that an owner leaves."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import traceback
from functools import partial
from pathlib import Path

import anyio
import pytest

from push_to_poll_client import StoreError
from push_to_poll_client._types import DeadLetter, Record
from push_to_poll_client.stores import SQLiteStore
from push_to_poll_client.stores._sqlite import dead_letters, owner_lock, reader
from push_to_poll_client.stores._sqlite import file as store_file
from push_to_poll_client.stores._sqlite.owner_lock import OwnerLock, lock_holder
from push_to_poll_client.stores._sqlite.reader import SQLiteReader
from push_to_poll_client.stores.reader import NameOwner, all_dead_letters
from tests.support.forms import form

# A child ends after a minute in any case, so that reading from it ends too.
HEAD = """
import os, signal, sys
import anyio
from push_to_poll_client._types import Record
from push_to_poll_client.stores import SQLiteStore

signal.alarm(60)
size = int(sys.argv[2])

async def commit(session, page):
    await session.commit(cursor=str(page), records=[Record(f"{page}-{number}") for number in range(size)])
"""

COMMIT_FOR_EVER = """
async def main():
    session = await SQLiteStore(sys.argv[1]).claim("a", feed="f")
    page = 0
    while True:
        await commit(session, page)
        page += 1
        if page in {1, 200}:
            print(page, flush=True)

anyio.run(main)
"""

START_AND_STOP_FOR_EVER = """
async def main():
    page = 0
    while True:
        session = await SQLiteStore(sys.argv[1]).claim("a", feed="f")
        await commit(session, page)
        await session.release()
        page += 1
        if page in {1, int(sys.argv[3])}:
            print(page, flush=True)

anyio.run(main)
"""

ENOUGH = form(30, 100)
"""Number of owners that start and stop, and of reads of their file."""


def child(script, path, *numbers):
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + script, path, *map(str, numbers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kept(path):
    """Return the content of every file in the directory."""
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


@pytest.fixture
def path():
    # Not in `tmp_path`: a second run of pytest takes from its parent directory the rights that `public` gives.
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory, "a store % of ünïcode?#", "store.db")


@pytest.fixture(autouse=True)
def _directory(path):
    path.parent.mkdir()


@pytest.fixture
def closed(path):
    """Return a file whose owner stopped cleanly."""
    times = iter(range(10**9, 10**9 + 100))

    async def own():
        for name, cursor in (("b", None), ("a", "c1"), ("\ud800", "\ud800")):
            session = await SQLiteStore(path, clock=times.__next__).claim(name, feed=f"feed of {name}")
            for number in range(ord(name) % 3):
                await session.commit(cursor=None, records=[Record(str(number))])
            await session.commit(cursor=cursor, records=[])
            await session.release()

    anyio.run(own)
    return path


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory):
    """Return files that a killed owner left; all tests copy these."""
    path = tmp_path_factory.mktemp("killed") / "store.db"
    with child(COMMIT_FOR_EVER, path, 3) as owner:
        owner.stdout.readline()
        owner.kill()
    return path.parent


@pytest.fixture
def killed(path, killed_once):
    """Return a file of a killed owner, with its last commits only in the WAL."""
    shutil.copytree(killed_once, path.parent, dirs_exist_ok=True)
    return path


async def claimed(path):
    return await SQLiteStore(path).claim("a", feed="f")


def check(reading, size=3):
    """Check that each page is complete: its records are stored with its cursor."""
    (progress,) = reading.progress
    assert (progress.name, progress.feed) == ("a", "f")
    assert progress.records == size * (int(progress.cursor or -1) + 1)
    return int(progress.cursor or -1)


def test_a_store_without_an_owner_is_read_without_changing_its_file(closed):
    before = kept(closed)
    reading = SQLiteReader(closed).snapshot()
    assert kept(closed) == before
    assert (reading.where, reading.size) == (str(closed), closed.stat().st_size)
    assert {one.owner for one in reading.owners} == {None}
    assert [
        (one.name, one.cursor, one.records, one.fencing_token, one.last_progress) for one in reading.progress
    ] == [
        ("a", "c1", 1, 1, 1e9 + 5),
        ("b", None, 2, 1, 1e9 + 2),
        ("\ud800", "\ud800", 0, 1, None),
    ]
    assert reading.progress[2].feed == "feed of \ud800"


def test_a_link_is_followed(closed, tmp_path):
    (tmp_path / "link").symlink_to(closed)
    through_link, direct = SQLiteReader(tmp_path / "link").snapshot(), SQLiteReader(closed).snapshot()
    assert (through_link.where, through_link.progress) == (direct.where, direct.progress)


def test_an_empty_file_has_no_consumer_yet(path):
    path.touch()
    assert SQLiteReader(path).snapshot().progress == ()


def test_the_file_of_a_killed_owner_is_read_without_changing_it(killed):
    before = kept(killed)
    reading = SQLiteReader(killed).snapshot()
    assert check(reading) >= 0
    assert reading.owners == (NameOwner("a", None, seconds_left=None, wanted=False, fencing_token=1),)
    assert reading.size == sum(len(before[name]) for name in ("store.db", "store.db-wal"))
    assert kept(killed) == before


def test_a_copy_without_its_shared_memory_file_is_read_without_changing_it(killed):
    whole = SQLiteReader(killed).snapshot().progress
    (killed.parent / "store.db-shm").unlink()
    before = kept(killed)
    assert SQLiteReader(killed).snapshot().progress == whole
    assert kept(killed) == before


def test_a_store_is_read_despite_a_stale_shared_memory_file(closed):
    """A copy of an unused file, beside the leftover of another one."""
    (closed.parent / "store.db-shm").write_bytes(bytes(32768))
    before = kept(closed)
    assert len(SQLiteReader(closed).snapshot().progress) == 3
    assert kept(closed) == before


def test_a_store_whose_wal_has_only_a_header_is_read_without_changing_it(killed):
    """Its owner was killed after writing the header. A SQLite reader waits ten seconds for such a WAL."""
    session = anyio.run(claimed, killed)
    header = (killed.parent / "store.db-wal").read_bytes()[:32]
    shared = (killed.parent / "store.db-shm").read_bytes()
    anyio.run(session.release)
    (killed.parent / "store.db-wal").write_bytes(header)
    (killed.parent / "store.db-shm").write_bytes(shared)
    before = kept(killed)
    assert check(SQLiteReader(killed).snapshot()) >= 0
    assert kept(killed) == before


def test_an_unfinished_transaction_in_a_rollback_journal_is_not_read(closed):
    database = sqlite3.connect(closed, isolation_level=None)
    database.execute("PRAGMA journal_mode = DELETE")
    database.execute("PRAGMA cache_size = 0")
    database.execute("BEGIN")
    database.execute("UPDATE push_to_poll_consumer SET cursor = hex(randomblob(100000))")
    for file in list(closed.parent.iterdir()):
        shutil.copy(file, closed.parent.parent / file.name)
    database.close()
    copy = closed.parent.parent / "store.db"
    assert copy.with_name("store.db-journal").stat().st_size
    assert SQLiteReader(copy).snapshot().progress == SQLiteReader(closed).snapshot().progress


def letters_of(keys):
    return [
        DeadLetter(dedupe_key=key, id=f"id of {key}", raw=b"raw", error="e", retry_requested=key > "5")
        for key in keys
    ]


async def bury(path, keys):
    session = await SQLiteStore(path, clock=iter(range(10**9, 10**9 + 100)).__next__).claim("a", feed="f")
    await session.commit(cursor="c1", records=[], dead_letters=letters_of(keys))
    await session.commit(cursor="c2", records=[])
    await session.release()


def test_dead_letters_are_read_in_the_order_of_their_keys(path):
    keys = sorted({*map(str, range(250)), "\ud800", "\uffff", ""})
    anyio.run(bury, path, keys)
    before = kept(path)
    assert list(all_dead_letters(SQLiteReader(path), "a")) == letters_of(keys)
    reader = SQLiteReader(path)
    assert [reader.dead_letter("a", letter.dedupe_key) for letter in letters_of(keys)] == letters_of(keys)
    assert reader.dead_letter("a", "250") is None
    assert SQLiteReader(path).snapshot().progress[0].dead_letters == len(keys)
    assert kept(path) == before


def test_few_dead_letters_are_in_memory_at_a_time(path, monkeypatch):
    anyio.run(bury, path, [str(number) for number in range(250)])
    sizes, read = [], dead_letters.limit_dead_letters
    monkeypatch.setattr(
        dead_letters, "limit_dead_letters", lambda letters: sizes.append(read(letters)) or sizes[-1]
    )
    letters = all_dead_letters(SQLiteReader(path), "a")
    next(letters)
    assert [len(some) for some in sizes] == [100]
    assert len([*letters]) == 249
    assert [len(some) for some in sizes] == [100, 100, 50, 0]


def test_saved_cursors_are_read_with_their_times(path):
    anyio.run(bury, path, [])
    before = kept(path)
    assert SQLiteReader(path).history("a") == ((None, 1e9), ("c1", 1e9 + 1), ("c2", 1e9 + 2))
    assert kept(path) == before


@pytest.mark.parametrize(("attempts", "failing"), [(None, 0), ("{}", 0), ('{"1":[1,0.0],"\\ud800":[2,0.0]}', 2)])
def test_messages_waiting_for_a_retry_are_counted(path, attempts, failing):
    async def fail():
        session = await SQLiteStore(path).claim("a", feed="f")
        await session.commit(cursor=None, records=[], state={"attempts": attempts, "other": "no JSON"})
        await session.release()

    anyio.run(bury, path, [])
    anyio.run(fail)
    assert SQLiteReader(path).snapshot().progress[0].failing == failing


def test_malformed_attempts_are_a_store_error(path):
    anyio.run(bury, path, [])
    foreign(path, "INSERT INTO push_to_poll_state VALUES (1, 'attempts', 'garbage')")
    with pytest.raises(StoreError, match="cannot be used: malformed JSON; check"):
        SQLiteReader(path).snapshot()


@pytest.mark.parametrize("read", ["dead_letters", "history"])
def test_an_unknown_consumer_name_is_a_store_error(path, read):
    path.touch()
    for make in (lambda: None, lambda: anyio.run(bury, path, [])):
        make()
        with pytest.raises(StoreError, match=r"store\.db has no consumer 'x'; push-to-poll status shows"):
            getattr(SQLiteReader(path), read)("x")


@pytest.mark.parametrize(
    ("change", "read"),
    [
        (
            "UPDATE push_to_poll_dead_letter SET id = 5",
            lambda path: SQLiteReader(path).dead_letters("a"),
        ),
        ("UPDATE push_to_poll_consumer SET cursor = 5", lambda path: SQLiteReader(path).history("a")),
        ("UPDATE push_to_poll_history SET at = 'then'", lambda path: SQLiteReader(path).history("a")),
    ],
)
def test_damaged_dead_letters_and_cursors_are_a_store_error(path, change, read):
    anyio.run(bury, path, ["k"])
    foreign(path, change)
    with pytest.raises(StoreError, match="is damaged"):
        read(path)


def test_views_and_triggers_are_allowed_only_on_tables_of_the_application(closed):
    foreign(
        closed,
        "CREATE TABLE theirs(x)",
        "CREATE VIEW v AS SELECT * FROM theirs",
        "CREATE TRIGGER t AFTER INSERT ON theirs BEGIN SELECT 1; END",
    )
    assert len(SQLiteReader(closed).snapshot().progress) == 3
    foreign(closed, "CREATE TRIGGER evil AFTER UPDATE ON push_to_poll_consumer BEGIN SELECT 1; END")
    with pytest.raises(StoreError, match="has a view, a trigger or a virtual table"):
        SQLiteReader(closed).snapshot()


FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child uses no thread of this process


def unprivileged(work):
    """Run it in a process that is not root, because root may do everything. An assertion fails here too."""
    if not (child := os.fork()):
        try:
            if os.getuid() == 0:
                os.setresuid(65534, 65534, 65534)
            work()
        except BaseException:  # noqa: BLE001  # as in the parent
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def public(path):
    """Return a function that makes the file and its directory readable, and nothing else."""

    def share(mode):
        directory = path.parent
        for file in directory.iterdir():
            file.chmod(mode)
        for parent in (directory, *directory.parents):
            if parent.owner() == directory.owner() and parent.stat().st_mode & 0o055 != 0o055:
                parent.chmod(parent.stat().st_mode | 0o055)
        directory.chmod(0o555)

    yield share
    path.parent.chmod(0o700)


@FORKS
@pytest.mark.parametrize("state", ["closed", "killed"])
def test_read_permission_is_enough_to_read_a_store(request, state, public):
    path = request.getfixturevalue(state)
    whole = SQLiteReader(path).snapshot().progress
    public(0o444)

    def read():
        assert SQLiteReader(path).snapshot().progress == whole

    unprivileged(read)


@FORKS
def test_missing_read_permission_is_a_store_error(closed, public):
    public(0o000)

    def read():
        with pytest.raises(StoreError, match="run the command as its owner"):
            SQLiteReader(closed).snapshot()

    unprivileged(read)


def test_reading_a_busy_store_shows_its_owner_and_does_not_disturb_it(path):
    with child(COMMIT_FOR_EVER, path, 3) as owner:
        owner.stdout.readline()
        cursors = []
        while len(cursors) < 100 or cursors[-1] < 200:
            reading = SQLiteReader(path).snapshot()
            assert [one.owner for one in reading.owners] == [f"process {owner.pid}"]
            cursors.append(check(reading))
        assert owner.stdout.readline() == "200\n"
        owner.kill()
        assert "Error" not in owner.stderr.read()
    assert cursors == sorted(cursors)
    assert len(set(cursors)) > 10


def test_the_error_for_an_invalid_schema_version_shows_it(path):
    foreign(path, "CREATE TABLE push_to_poll_schema AS SELECT 'x' AS version")
    with pytest.raises(StoreError, match=r"the version of its schema is invalid: .*\('x',\)"):
        SQLiteReader(path).snapshot()


def test_reading_does_not_disturb_owners_that_start_and_stop(path):
    with child(START_AND_STOP_FOR_EVER, path, 3, ENOUGH) as owner:
        owner.stdout.readline()
        cursors = []
        while len(cursors) < ENOUGH or cursors[-1] < ENOUGH:
            cursors.append(check(SQLiteReader(path).snapshot()))
        assert owner.stdout.readline() == f"{ENOUGH}\n"
        owner.kill()
        assert "Error" not in owner.stderr.read()
    assert cursors == sorted(cursors)


OPEN_AND_CLOSE = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as database:
    print(database.execute(sys.argv[2]).fetchall())
database.close()
"""
"""Program that deletes the WAL at its end, unless another process has a lock on the file."""


def test_the_process_that_owns_the_file_reads_it_and_keeps_its_locks(path):
    async def own_and_read():
        session = await claimed(path)
        await session.commit(cursor="1", records=[])
        for statement in ("PRAGMA wal_checkpoint(TRUNCATE)", "SELECT count(*) FROM push_to_poll_consumer"):
            # The WAL is empty at the second time.
            snapshot = await anyio.to_thread.run_sync(SQLiteStore(path).reader().snapshot)
            assert (snapshot.progress[0].cursor, snapshot.owners[0].owner) == ("1", f"process {os.getpid()}")
            program = [sys.executable, "-c", OPEN_AND_CLOSE, path, statement]
            await anyio.to_thread.run_sync(partial(subprocess.run, program, check=True, capture_output=True))
        await session.commit(cursor="end", records=[])
        await session.release()

    anyio.run(own_and_read)
    assert SQLiteReader(path).snapshot().progress[0].cursor == "end"


def test_a_process_does_not_open_the_file_as_its_owner_while_it_reads_it(closed, monkeypatch):
    held, check, prepare = [], reader.check_wal, store_file.prepare

    def watched(work):
        return lambda *args, **options: held.append(store_file.one_opening.locked()) or work(*args, **options)

    monkeypatch.setattr(reader, "check_wal", watched(check))
    monkeypatch.setattr(store_file, "prepare", watched(prepare))
    SQLiteReader(closed).snapshot()
    anyio.run(SQLiteStore(closed).migrate)
    assert held == [True, True]
    assert not store_file.one_opening.locked()


def test_a_process_reads_the_file_while_its_own_store_opens_and_closes_it(path):
    async def start_and_stop():
        for page in range(ENOUGH):
            session = await claimed(path)
            await session.commit(cursor=str(page), records=[Record(f"{page} {number}") for number in range(3)])
            await session.release()

    anyio.run(start_and_stop)
    owner = threading.Thread(target=anyio.run, args=(start_and_stop,))
    owner.start()
    while owner.is_alive():
        assert SQLiteReader(path).snapshot().progress[0].records == 3 * ENOUGH
    owner.join()


def foreign(path, *statements):
    with sqlite3.connect(path) as database:
        for statement in statements:
            database.execute(statement)
    database.close()


def not_there(path):
    return "no state file at "


def a_directory(path):
    path.mkdir()
    return "is not a file; give the file"


def a_fifo(path):
    os.mkfifo(path)
    return "is not a file; give the file"


def text(path):
    path.write_text("not a database at all" * 100)
    return "is not a SQLite database"


def one_byte(path):
    path.write_text("x")
    return "was cut off, or is not a SQLite database"


def of_another_application(path):
    foreign(path, "CREATE TABLE theirs(x)")
    return "is a database of another application"


def of_a_newer_version(path):
    foreign(path, "CREATE TABLE push_to_poll_schema AS SELECT 99 AS version")
    return "was written by a newer push_to_poll_client"


def with_no_tables(path):
    foreign(path, "CREATE TABLE push_to_poll_schema AS SELECT 1 AS version")
    return "cannot be used: no such table"


@pytest.mark.parametrize(
    "make",
    [not_there, a_directory, a_fifo, text, one_byte, of_another_application, of_a_newer_version, with_no_tables],
)
def test_a_path_that_is_not_a_usable_store_is_a_store_error(path, make):
    says = make(path)
    with pytest.raises(StoreError, match=says) as caught:
        SQLiteReader(path).snapshot()
    assert str(path) in str(caught.value)


def test_a_file_name_that_is_too_long_is_a_store_error(path):
    with pytest.raises(StoreError, match=r"cannot read .*: File name too long"):
        SQLiteReader(path.parent / ("x" * 1000)).snapshot()


def test_a_truncated_file_is_a_store_error(closed):
    whole = closed.read_bytes()
    for length in (len(whole) - 100, len(whole) // 2, len(whole) // 2 // 4096 * 4096):
        closed.write_bytes(whole[:length])
        with pytest.raises(StoreError, match="cut off"):
            SQLiteReader(closed).snapshot()


def test_a_damaged_file_is_a_store_error(closed):
    damaged = bytearray(closed.read_bytes())
    damaged[4096:] = b"\xff" * (len(damaged) - 4096)
    closed.write_bytes(damaged)
    with pytest.raises(StoreError, match="the file is damaged or cut off"):
        SQLiteReader(closed).snapshot()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE push_to_poll_consumer SET cursor = 5",
        "UPDATE push_to_poll_consumer SET cursor = x'ff'",
        "UPDATE push_to_poll_consumer SET cursor = CAST(x'ff' AS TEXT)",
        "UPDATE push_to_poll_consumer SET token = 'many'",
        "UPDATE push_to_poll_segment SET size = 1.5",
        "UPDATE push_to_poll_segment SET last_at = 9e999",
        "UPDATE push_to_poll_segment SET last_at = -1",
    ],
)
def test_consumer_and_segment_values_of_a_wrong_type_or_range_are_a_store_error(closed, change):
    foreign(closed, change)
    with pytest.raises(StoreError, match=r"is damaged|cannot be used: Could not decode"):
        SQLiteReader(closed).snapshot()


def test_a_file_without_read_access_for_this_process_is_a_store_error(closed, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StoreError, match="this user cannot read"):
        SQLiteReader(closed).snapshot()


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr(reader, "_PAUSE", 0)


@pytest.mark.usefixtures("_impatient")
def test_a_file_that_changes_while_it_is_read_is_read_again(closed, monkeypatch):
    """The first read may return anything or fail."""
    read, answers = reader._read, [StoreError("torn"), (), None]

    def torn(path, look, ask):
        answer = answers.pop(0)
        if answer is None:
            return read(path, look, ask)
        closed.touch()
        os.utime(closed, ns=(0, len(answers)))
        if answer:
            raise answer
        return answer

    monkeypatch.setattr(reader, "_read", torn)
    assert len(SQLiteReader(closed).snapshot().progress) == 3


@pytest.mark.usefixtures("_impatient")
def test_reading_waits_for_an_owner_that_is_starting(closed, monkeypatch):
    """Its shared memory exists but is not ready. Only SQLite's answer shows this."""
    read, answers = reader._read, [sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN]

    def starting(path, look, ask):
        if answers:
            cause = sqlite3.OperationalError()
            cause.sqlite_errorcode = answers.pop()
            raise StoreError("not ready") from cause
        return read(path, look, ask)

    monkeypatch.setattr(reader, "_read", starting)
    assert len(SQLiteReader(closed).snapshot().progress) == 3


@pytest.mark.usefixtures("_impatient")
def test_a_file_that_never_stops_changing_is_still_read(closed, monkeypatch):
    look, times = reader._stat_files, []

    def changed(path):
        times.append(None)
        return {**look(path), "": (1, 2, len(times))}

    monkeypatch.setattr(reader, "_stat_files", changed)
    assert len(SQLiteReader(closed).snapshot().progress) == 3


def test_a_full_disk_while_the_file_is_copied_is_a_store_error(killed, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    (killed.parent / "store.db-shm").unlink()
    monkeypatch.setattr(reader.shutil, "copyfile", full)
    with pytest.raises(StoreError, match=r"cannot make a temporary copy of .*: No space left on device"):
        SQLiteReader(killed).snapshot()


@pytest.fixture
def owned(tmp_path):
    path = str(tmp_path / "owned")
    lock = OwnerLock(path)
    yield path
    lock.release()


def test_lock_holder_returns_the_process_that_holds_the_lock(owned):
    assert lock_holder(owned) == os.getpid()


def test_lock_holder_returns_none_after_the_lock_is_released(tmp_path, monkeypatch):
    path = str(tmp_path / "owned")
    OwnerLock(path).release()
    assert lock_holder(path) is None
    monkeypatch.setattr(owner_lock, "_PROC_LOCKS", tmp_path / "missing")
    assert lock_holder(path) is None


def test_the_owner_is_found_when_the_list_of_locks_names_another_device(owned, tmp_path, monkeypatch):
    inode = Path(f"{owned}.lock").stat().st_ino
    monkeypatch.setattr(owner_lock, "_PROC_LOCKS", tmp_path / "locks")
    for line, owner in [
        (f"1: FLOCK  ADVISORY  WRITE {os.getpid()} fe:ff:{inode} 0 EOF", os.getpid()),
        (f"1: FLOCK  ADVISORY  WRITE {os.getpid() + 1} fe:ff:{inode} 0 EOF", None),
        (f"1: -> FLOCK  ADVISORY  WRITE {os.getpid()} fe:ff:{inode} 0 EOF", None),
    ]:
        (tmp_path / "locks").write_text(f"{line}\n")
        assert lock_holder(owned) == owner


@pytest.mark.parametrize(
    ("error", "runs"), [(None, True), (PermissionError, True), (ProcessLookupError, False), (OverflowError, False)]
)
def test_without_a_list_of_locks_the_owner_is_the_running_process_in_the_lock_file(
    owned, tmp_path, monkeypatch, error, runs
):
    def kill(process, number):
        assert (process, number) == (os.getpid(), 0)
        if error is not None:
            raise error

    monkeypatch.setattr(owner_lock, "_PROC_LOCKS", tmp_path / "missing")
    monkeypatch.setattr(os, "kill", kill)
    assert lock_holder(owned) == (os.getpid() if runs else None)


def test_a_lock_file_with_garbage_names_no_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(owner_lock, "_PROC_LOCKS", tmp_path / "missing")
    (tmp_path / "owned.lock").write_bytes(b"\xff\x1b[2J")
    assert lock_holder(str(tmp_path / "owned")) is None
