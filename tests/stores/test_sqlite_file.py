"""SQLiteStore detects deleted, replaced, restored, linked and locked files."""

import contextlib
import logging
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from push_to_poll_client import StoreError, StoreUnavailable
from push_to_poll_client._types import Record
from push_to_poll_client.cli._output import Exit
from push_to_poll_client.stores import SQLiteStore
from push_to_poll_client.stores._sqlite import file as file_module
from push_to_poll_client.stores._sqlite import schema, wal
from push_to_poll_client.stores._sqlite.errors import wrap_sqlite_errors
from push_to_poll_client.stores._sqlite.owner_lock import lock_holder
from push_to_poll_client.stores._sqlite.reader import SQLiteReader
from tests.support.command_line import typed
from tests.support.forms import GUARD

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("inline_threads")]

# Nothing here waits, so one event loop is enough.
anyio_backend = pytest.fixture(lambda: "asyncio", name="anyio_backend")

SUFFIXES = ("", "-wal", "-shm")


@pytest.fixture
def path(tmp_path):
    (tmp_path / "store").mkdir()
    return tmp_path / "store" / "state.db"


def side(path, suffix):
    """Return the path of the database or of a file beside it."""
    return path.with_name(path.name + suffix)


@contextlib.asynccontextmanager
async def claimed(store, name="a"):
    session = await store.claim(name, feed="f")
    try:
        yield session
    finally:
        await session.release()


async def commit(session, number):
    await session.commit(cursor=str(number), records=[Record(f"{number}-{n}") for n in range(30)])


def copy(source, target):
    """Copy the files as a kill at this moment would leave them, and return the target."""
    target.parent.mkdir(exist_ok=True)
    for suffix in SUFFIXES:
        Path(f"{target}{suffix}").unlink(missing_ok=True)
        if Path(f"{source}{suffix}").exists():
            shutil.copyfile(f"{source}{suffix}", f"{target}{suffix}")
    return target


def back_up(path, target):
    with (
        contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(target)) as copied,
    ):
        source.backup(copied)


def vacuum_into(path, target):
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source:
        source.execute("VACUUM INTO ?", [str(target)])


class TestInPlace:
    """SQLite writes on, without an error, to files that were deleted or renamed."""

    @pytest.mark.parametrize("transactional", [False, True])
    @pytest.mark.parametrize("suffix", ["", "-wal", ".lock"])
    @pytest.mark.parametrize("how", ["deleted", "replaced"])
    async def test_a_commit_to_files_that_are_gone_is_refused(self, path, tmp_path, suffix, how, transactional):
        async with claimed(SQLiteStore(path, transactional=transactional)) as session:
            await commit(session, 1)
            changed = side(path, suffix)
            content = changed.read_bytes()
            changed.unlink()
            if how == "replaced":
                (tmp_path / "other").touch()  # to give the new file another inode
                changed.write_bytes(content)
            reason = (
                rf"state\.db{suffix} was {how} .*while this process used .*state\.db: .*This commit was rolled"
            )
            for _ in range(2):
                with pytest.raises(StoreError, match=reason) as caught:
                    await commit(session, 2)
                assert not isinstance(caught.value, StoreUnavailable), "it would be waited for"
            assert session.cursor == "1"

    async def test_writes_of_handlers_to_a_deleted_file_are_rolled_back(self, path):
        store = SQLiteStore(path, transactional=True)
        async with claimed(store) as session:
            await commit(session, 1)
            moved = path.with_name("moved.db")

            async def handle():
                async with session.transaction([Record("x")]):
                    store.connection.execute("CREATE TABLE note(text)")
                    path.rename(moved)

            with pytest.raises(StoreError, match=r"deleted or moved away .* This commit was rolled back"):
                await handle()
            moved.rename(path)
            await commit(session, 3)
            assert await session.unseen(["x"]) == {"x"}

    async def test_a_file_that_exists_again_is_used(self, path):
        async with claimed(SQLiteStore(path)) as session:
            moved = path.rename(path.with_name("moved.db"))
            with pytest.raises(StoreError, match="moved away"):
                await commit(session, 1)
            moved.rename(path)
            await commit(session, 1)
        async with claimed(SQLiteStore(path)) as session:
            assert session.cursor == "1"


class Run:
    """A run that restarts the WAL often, with copies of the files at many moments.

    Attributes:
        killed: Copies as a kill would leave them, with the cursor of each.
        backups: Backups, each with True if the WAL restarted after it.
    """

    def __init__(self, path, directory):
        self.path = path
        self.directory = directory
        self.killed = []
        self.backups = []
        self._count = 0

    def target(self):
        self._count += 1
        return self.directory / f"{self._count}" / "state.db"

    def kill(self, cursor):
        self.killed.append((copy(self.path, self.target()), cursor))

    def kill_within_checkpoint(self, cursor, checkpoint):
        """Copy the files during a checkpoint, which writes page after page to the database, in order."""
        before = copy(self.path, self.target())
        result = checkpoint()
        old, new = before.read_bytes(), self.path.read_bytes()
        pages = [
            start for start in range(0, len(new), 4096) if old[start : start + 4096] != new[start : start + 4096]
        ]
        for written in range(1, len(pages) + 1):
            mixed = bytearray(old.ljust(len(new), b"\0"))
            for start in pages[:written]:
                mixed[start : start + 4096] = new[start : start + 4096]
            target = copy(before, self.target())
            target.write_bytes(mixed)
            self.killed.append((target, cursor))
        return result


@pytest.fixture
def run(path, tmp_path, monkeypatch):
    monkeypatch.setattr(file_module, "_CHECKPOINT_FRAMES", 12)
    return Run(path, tmp_path)


async def cursor_of(path):
    async with claimed(SQLiteStore(path)) as session:
        return session.cursor


@contextlib.contextmanager
def program(path):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


class TestOwnWAL:
    """Never reject a WAL that belongs to its file: following the advice would lose commits."""

    @pytest.mark.parametrize("disturbance", ["none", "reader", "writer", "vacuum"])
    @pytest.mark.parametrize("transactional", [False, True])
    async def test_the_wal_of_a_killed_owner_is_accepted(self, run, path, monkeypatch, disturbance, transactional):
        really = file_module.Checkpoints._checkpoint
        cursor = None

        def checkpoint(self):
            return run.kill_within_checkpoint(cursor, lambda: really(self))

        monkeypatch.setattr(file_module.Checkpoints, "_checkpoint", checkpoint)
        for start in (1, 11, 21):
            store = SQLiteStore(path, transactional=transactional, synchronous="NORMAL")  # faster than FULL
            async with claimed(store) as session:
                for number in range(start, start + 10):
                    cursor = str(number)
                    with contextlib.ExitStack() as stack:
                        if disturbance != "none" and number % 10 in {2, 3, 7}:
                            other = stack.enter_context(program(path))
                        if disturbance == "reader" and number % 10 in {2, 3, 7}:
                            other.execute("BEGIN")
                            other.execute("SELECT count(*) FROM sqlite_master").fetchone()
                        await commit(session, number)
                        if disturbance == "writer" and number % 10 in {2, 3, 7}:
                            other.execute(f"PRAGMA wal_autocheckpoint = {number}")
                            other.execute(f"CREATE TABLE t{number} AS SELECT {number}")
                        elif disturbance == "vacuum" and number % 10 in {2, 3, 7}:
                            other.execute(f"CREATE TABLE t{number} AS SELECT zeroblob(9000)")
                            other.execute("DROP TABLE IF EXISTS t2")
                            other.execute("VACUUM")
                        run.kill(cursor)
            run.kill(cursor)
        monkeypatch.setattr(file_module.Checkpoints, "_checkpoint", really)
        marks = [read.marks for target, _ in run.killed if (read := wal._read_wal(f"{target}-wal"))]
        assert sum(map(bool, marks)) > 30, "else nothing was compared"
        for target, _ in run.killed:
            wal.check_wal(str(target))
        for target, expected in run.killed[:: max(1, len(run.killed) // 12)]:
            assert await cursor_of(target) == expected

    async def test_a_wal_of_an_earlier_version_is_accepted_and_the_file_migrated(self, tmp_path):
        old = shutil.copy(Path(__file__).parent / "files" / "b55b95d.db", tmp_path / "old.db")
        with program(old) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("UPDATE push_to_poll_consumer SET cursor = 'new' WHERE name = 'orders'")
            killed = copy(old, tmp_path / "killed" / "state.db")
        store = SQLiteStore(killed)
        session = await store.claim("orders", feed="shop")
        assert session.cursor == "new"
        await session.commit(cursor="newer", records=[])
        killed = copy(killed, tmp_path / "again" / "state.db")
        await session.release()
        with program(killed) as connection:
            assert connection.execute("SELECT version FROM push_to_poll_schema").fetchall() == [(2,)]
            assert connection.execute(
                "SELECT cursor FROM push_to_poll_consumer WHERE name = 'orders'"
            ).fetchall() == [("newer",)]

    async def test_a_table_dropped_and_created_again_within_the_wal_is_accepted(self, run, path):
        async with claimed(SQLiteStore(path)) as session:
            await commit(session, 1)
            with program(path) as other:
                other.execute("DROP TABLE push_to_poll_wal")
                other.execute(schema.MIGRATIONS[1][0])
            await commit(session, 2)
            run.kill("2")
        ((killed, cursor),) = run.killed
        assert await cursor_of(killed) == cursor

    async def test_a_wal_without_a_frame_is_ignored(self, path):
        async with claimed(SQLiteStore(path)) as session:
            await commit(session, 1)
        for content in (b"", b"x", bytes(32), struct.pack(">8I", 0x377F0682, 3007000, 4096, 0, 1, 2, 0, 0)):
            side(path, "-wal").write_bytes(content)
            assert await cursor_of(path) == "1"


def put_by_copy(backup, path):
    path.write_bytes(backup.read_bytes())


def put_by_rename(backup, path):
    shutil.copy(backup, path.with_name("new")).rename(path)


@contextlib.contextmanager
def unchanged(path):
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    yield
    after = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    after.pop(f"{path.name}.lock", None)
    before.pop(f"{path.name}.lock", None)
    assert after == before


REASON = r"state\.db does not belong to .*state\.db-wal: .* move .*-wal and .*-shm away"


async def test_a_backup_that_was_restored_into_an_open_database_is_accepted(path, tmp_path):
    """SQLite's backup API writes the old mark and all other pages to a new WAL."""
    async with claimed(SQLiteStore(path)) as session:
        await commit(session, 1)
        back_up(path, tmp_path / "backup.db")
        for number in range(2, 40):
            await commit(session, number)
    async with claimed(SQLiteStore(path)) as session:
        await commit(session, 40)
    with program(path) as application, program(tmp_path / "backup.db") as backup:
        application.execute("PRAGMA wal_autocheckpoint = 0")
        backup.backup(application)
        async with claimed(SQLiteStore(path)) as session:
            assert session.cursor == "1"


class TestForeignWAL:
    """SQLite would mix pages of two different times."""

    @pytest.fixture
    async def backups(self, run, path):
        """Make backups at many moments, and a copy as a kill after the last backup leaves it."""
        async with claimed(SQLiteStore(path, synchronous="NORMAL")) as session:
            for number in range(1, 25):
                await commit(session, number)
                for make in (back_up, vacuum_into)[: 1 + (sqlite3.sqlite_version_info >= (3, 27))]:
                    target = run.target()
                    target.parent.mkdir()
                    make(path, target)
                    run.backups.append((make, target, str(number), path.read_bytes()))
            run.kill("24")
        return run

    @pytest.mark.parametrize("put", [put_by_copy, put_by_rename])
    async def test_a_backup_beside_the_wal_of_a_killed_owner_is_refused(self, backups, tmp_path, put):
        ((killed, _),) = backups.killed
        accepted = []
        for make, backup, number, main in backups.backups:
            restored = copy(killed, tmp_path / "restored" / "state.db")
            put(backup, restored)
            try:
                wal.check_wal(str(restored))
            except StoreError:
                continue
            # This backup is newer than the restart of the WAL: the WAL has all later pages.
            assert make is back_up
            assert main == killed.read_bytes()
            accepted.append(number)
            with program(restored) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                assert connection.execute("SELECT cursor FROM push_to_poll_consumer").fetchone() == ("24",)
        assert len(accepted) < 10, "most are older"

    @pytest.mark.parametrize("put", [put_by_copy, put_by_rename])
    @pytest.mark.parametrize("transactional", [False, True])
    async def test_a_rejected_file_is_unchanged_and_the_advice_helps(
        self, backups, tmp_path, put, transactional, capsys
    ):
        ((killed, _),) = backups.killed
        _, backup, number, _ = backups.backups[0]
        restored = copy(killed, tmp_path / "restored" / "state.db")
        put(backup, restored)
        with unchanged(restored):
            with pytest.raises(StoreError, match=REASON):
                await SQLiteStore(restored, transactional=transactional).claim("a", feed="f")
            with pytest.raises(StoreError, match=REASON):
                SQLiteReader(restored).snapshot()
            assert typed("status", "--store", str(restored)) == Exit.STATE
            assert "does not belong to" in capsys.readouterr().err
        for suffix in ("-wal", "-shm"):
            side(restored, suffix).unlink()
        assert [name.cursor for name in SQLiteReader(restored).snapshot().progress] == [number]
        assert await cursor_of(restored) == number

    async def test_a_backup_from_before_a_clean_restart_is_refused(self, path, tmp_path):
        """No checkpoint by size happens in between, and the newest mark stays the same for long."""
        async with claimed(SQLiteStore(path)) as session:
            await commit(session, 1)
            await commit(session, 2)
            back_up(path, tmp_path / "backup.db")
            await commit(session, 3)
        async with claimed(SQLiteStore(path)) as session:
            await commit(session, 4)
            killed = copy(path, tmp_path / "killed" / "state.db")
        put_by_copy(tmp_path / "backup.db", killed)
        with pytest.raises(StoreError, match=REASON):
            await SQLiteStore(killed).claim("a", feed="f")

    @pytest.mark.parametrize("main", ["empty", "missing"])
    async def test_a_wal_whose_database_is_gone_is_refused(self, backups, main):
        """SQLite would delete the WAL."""
        ((killed, _),) = backups.killed
        killed.unlink()
        if main == "empty":
            killed.touch()
        with unchanged(killed), pytest.raises(StoreError, match=r"is missing or empty, .* Put that file back"):
            await SQLiteStore(killed).claim("a", feed="f")


@pytest.mark.skipif(sys.platform == "win32", reason="closing a file drops no lock there")
@pytest.mark.parametrize("is_open", [False, True])
def test_the_look_at_a_database_leaves_no_descriptor_and_drops_no_lock(path, is_open):
    """On POSIX, closing any descriptor of a file drops all locks that the process has on it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as own:
        own.execute("CREATE TABLE note(text)")
        if is_open:
            own.execute("BEGIN IMMEDIATE")
        else:
            own.close()
        before = len([*Path("/dev/fd").iterdir()])
        for _ in range(3):
            assert wal._read_main(str(path), 0, 6) == b"SQLite"
        assert len([*Path("/dev/fd").iterdir()]) == before + is_open
        locks = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
        other = subprocess.run([sys.executable, "-c", locks, path], capture_output=True, check=False)
        assert (b"database is locked" in other.stderr) == is_open


class BusyWithCheckpoint:
    """Connection to a file during another program's checkpoint (https://www.sqlite.org/pragma.html)."""

    def execute(self, sql):
        self.row = (1, -1, -1) if "wal_checkpoint" in sql else (5000,)
        return self

    def fetchone(self):
        return self.row


class TestCheckpoints:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch):
        monkeypatch.setattr(file_module, "_CHECKPOINT_FRAMES", 10)
        monkeypatch.setattr(file_module, "_LARGE_WAL", 200_000)

    def size(self, path):
        return Path(f"{path}-wal").stat().st_size

    async def test_the_wal_does_not_grow_without_a_reader(self, path):
        async with claimed(SQLiteStore(path)) as session:
            sizes = []
            for number in range(60):
                await commit(session, number)
                sizes.append(self.size(path))
        assert max(sizes) < 150_000
        assert sizes == sorted(sizes), "it is written anew from its beginning, not cut off"

    async def test_a_wal_that_a_reader_holds_is_reported_once_and_cut_off_later(self, path, caplog):
        async with claimed(SQLiteStore(path)) as session:
            for _ in range(2):
                caplog.clear()
                await commit(session, 0)
                with program(path) as reader:
                    reader.execute("BEGIN")
                    reader.execute("SELECT count(*) FROM push_to_poll_record").fetchone()
                    for number in range(100):
                        await commit(session, number)
                assert self.size(path) > 400_000
                (record,) = caplog.records
                assert record.levelno == logging.WARNING
                assert (
                    "state.db-wal has 0 MiB and is still growing: another program has a read transaction"
                    in caplog.text
                )
                for number in range(30):
                    await commit(session, number)
                assert self.size(path) < 150_000
                assert len(caplog.records) == 1

    async def test_checkpoints_wait_for_nothing(self, path):
        async with claimed(SQLiteStore(path)) as session:
            statements = []
            session._file.connection.set_trace_callback(statements.append)
            with program(path) as reader:
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM push_to_poll_record").fetchone()
                for number in range(60):
                    await commit(session, number)
            session._file.connection.set_trace_callback(None)
            checkpoints = [at for at, statement in enumerate(statements) if "wal_checkpoint" in statement]
            assert checkpoints
            assert {statements[at - 1] for at in checkpoints} == {"PRAGMA busy_timeout = 0"}
            assert session._file.connection.execute("PRAGMA busy_timeout").fetchone() == (5000,)

    async def test_a_checkpoint_that_fails_does_not_fail_the_commit(self, path, monkeypatch, caplog):
        def fail(self):
            raise sqlite3.OperationalError("database or disk is full")

        async with claimed(SQLiteStore(path)) as session:
            with monkeypatch.context() as patch:
                patch.setattr(file_module.Checkpoints, "_checkpoint", fail)
                for number in range(60):
                    await commit(session, number)
            assert "is still growing: database or disk is full" in caplog.text
            for number in range(60, 90):
                await commit(session, number)
            assert self.size(path) < 150_000
        assert await cursor_of(path) == "89"

    async def test_another_checkpoint_is_named_and_not_waited_for(self, path):
        async with claimed(SQLiteStore(path)) as session:
            await commit(session, 1)
            checkpoints = file_module.Checkpoints(BusyWithCheckpoint(), str(path))
            assert checkpoints._checkpoint() == "another program writes to the file or makes a checkpoint"
            checkpoints.close()


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
class TestForeignFiles:
    """Files that an attacker can put next to the database in a shared directory."""

    VICTIM = "the only copy of a thesis"

    @pytest.fixture
    def victim(self, tmp_path):
        (tmp_path / "victim").write_text(self.VICTIM)
        return tmp_path / "victim"

    async def refused(self, path):
        with anyio.fail_after(GUARD), pytest.raises(StoreError) as error:
            await SQLiteStore(path).claim("a", feed="f")
        assert not path.exists(), "nothing was made"
        assert "check its origin, then delete it or choose another file" in str(error.value)
        return str(error.value)

    @pytest.mark.parametrize("link", [os.symlink, os.link])
    async def test_a_link_in_place_of_the_lock_file_is_not_followed(self, path, victim, link):
        link(victim, side(path, ".lock"))
        text = await self.refused(path)
        assert f"{path}.lock is not a lock file" in text
        assert victim.read_text() == self.VICTIM
        assert lock_holder(str(path)) is None

    async def test_a_link_to_nothing_in_place_of_the_lock_file_makes_no_file(self, path, tmp_path):
        side(path, ".lock").symlink_to(tmp_path / "new")
        await self.refused(path)
        assert not (tmp_path / "new").exists()

    async def test_a_named_pipe_in_place_of_the_lock_file_is_refused_and_does_not_hang(self, path):
        os.mkfifo(side(path, ".lock"))
        await self.refused(path)
        assert lock_holder(str(path)) is None

    async def test_a_directory_in_place_of_the_lock_file_is_refused(self, path):
        side(path, ".lock").mkdir()
        await self.refused(path)

    @pytest.mark.parametrize("content", ["[[package]]", "1" * 21])
    async def test_a_file_that_only_has_the_name_of_a_lock_file_keeps_its_content(self, path, content):
        """`SQLiteStore("poetry")` would otherwise empty the poetry.lock of a project."""
        side(path, ".lock").write_text(content)
        await self.refused(path)
        assert side(path, ".lock").read_text() == content

    async def test_a_new_lock_file_is_for_its_owner_alone(self, path):
        async with claimed(SQLiteStore(path)):
            assert side(path, ".lock").stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
    @pytest.mark.parametrize("make", [os.symlink, lambda _, name: os.mkfifo(name)], ids=["link", "pipe"])
    async def test_a_link_or_a_pipe_in_place_of_a_side_file_is_refused(self, path, victim, suffix, make):
        make(victim, side(path, suffix))
        text = await self.refused(path)
        assert f"{path}{suffix} is a link or a special file" in text
        assert victim.read_text() == self.VICTIM

    async def test_a_symbolic_link_to_the_database_is_followed(self, path, tmp_path):
        (tmp_path / "link.db").symlink_to(path)
        async with claimed(SQLiteStore(tmp_path / "link.db")):
            assert side(path, ".lock").exists(), "the lock is beside the file itself"
            assert not (tmp_path / "link.db.lock").exists()

    @pytest.mark.parametrize(("mode", "warns"), [(0o600, 0), (0o644, 0), (0o660, 0), (0o666, 1), (0o602, 1)])
    async def test_a_file_that_all_users_may_write_to_is_reported_once(self, path, caplog, mode, warns):
        async with claimed(SQLiteStore(path)):
            pass
        path.chmod(mode)
        store = SQLiteStore(path)
        async with claimed(store), claimed(store, "b"):
            pass
        warnings = [text for text in caplog.messages if f"state.db has the mode {mode:04o}" in text]
        assert len(warnings) == warns
        assert all("chmod 600" in text for text in warnings)


class TestErrors:
    async def test_a_hard_link_is_reported(self, path, caplog):
        async with claimed(SQLiteStore(path)):
            pass
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        os.link(path, path.with_name("link.db"))
        async with claimed(SQLiteStore(path)):
            assert "state.db has 2 names (hard links), and each name has its own lock" in caplog.text

    @pytest.mark.parametrize("kind", ["TABLE json_each(a)", "VIEW Json_Each AS SELECT 1", "TABLE JSON_EACH(b)"])
    async def test_a_table_that_hides_a_function_is_refused(self, path, kind):
        with program(path) as connection:
            connection.execute(f"CREATE {kind}")
        with unchanged(path), pytest.raises(StoreError, match=r"state\.db has a table or view called json_each"):
            await SQLiteStore(path, transactional=True).claim("a", feed="f")

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE TABLE json_each(a)",
            "CREATE TEMP TABLE JSON_EACH(a)",
            "CREATE VIEW json_each AS SELECT 1",
            "ALTER TABLE note RENAME TO json_each",
        ],
    )
    async def test_a_handler_cannot_make_a_table_that_hides_a_function(self, path, statement):
        with program(path) as connection:
            connection.execute("CREATE TABLE note(text)")
        store = SQLiteStore(path, transactional=True)
        async with claimed(store) as session:
            async with session.transaction([Record("x")]):
                with pytest.raises(
                    RuntimeError, match=r"(?i)must not create 'json_each' .* hide a function of SQLite"
                ):
                    store.connection.execute(statement)
                store.connection.execute("INSERT INTO note SELECT value FROM json_each('[1]')")
            await commit(session, 1)

    async def test_a_table_called_json_extract_hides_nothing(self, path):
        with program(path) as connection:
            connection.execute("CREATE TABLE json_extract(a)")
            connection.execute("CREATE TABLE other(a)")
            connection.execute("CREATE INDEX json_each ON other(a)")
        async with claimed(SQLiteStore(path, transactional=True)) as session:
            await commit(session, 1)
        assert await cursor_of(path) == "1"

    @pytest.mark.parametrize(
        ("code", "opening", "kind", "advice"),
        [
            ("SQLITE_BUSY", False, StoreUnavailable, "another program has kept a write transaction open"),
            ("SQLITE_BUSY", True, StoreUnavailable, "another program has kept a transaction open"),
            ("SQLITE_BUSY_RECOVERY", False, StoreUnavailable, "been repairing the file after a crash"),
            ("SQLITE_BUSY_SNAPSHOT", False, StoreUnavailable, "wrote to the file after this transaction began"),
            ("SQLITE_LOCKED", False, StoreUnavailable, "another statement on the store's connection"),
            ("SQLITE_FULL", False, StoreUnavailable, "free some space"),
            ("SQLITE_IOERR_WRITE", False, StoreUnavailable, "check the disk"),
            (8202, False, StoreError, "check the disk"),
            (8458, False, StoreError, "check the disk"),
            ("SQLITE_CANTOPEN", False, StoreUnavailable, "too many files are open"),
            ("SQLITE_CANTOPEN", True, StoreError, "choose a file that this process can create"),
            ("SQLITE_READONLY", False, StoreError, "make the file and its directory writable"),
            ("SQLITE_CORRUPT", False, StoreError, "damaged"),
        ],
    )
    def test_an_error_of_sqlite_has_its_kind_and_advice(self, code, opening, kind, advice):
        error = sqlite3.OperationalError("planted")
        error.sqlite_errorcode = getattr(sqlite3, code) if isinstance(code, str) else code
        with pytest.raises(StoreError, match=advice) as caught, wrap_sqlite_errors("x.db", opening=opening):
            raise error
        assert type(caught.value) is kind

    async def test_a_program_that_locks_the_whole_file_is_named_at_opening(self, path, monkeypatch):
        monkeypatch.setattr("push_to_poll_client.stores._sqlite.file.BUSY_TIMEOUT", 0.01)
        async with claimed(SQLiteStore(path)):
            pass
        with program(path) as other:
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StoreUnavailable, match="kept a transaction open or the file locked"):
                await SQLiteStore(path).claim("a", feed="f")


class TestOldSQLite:
    async def test_a_version_that_does_not_serve_is_refused(self, path, monkeypatch):
        async with claimed(SQLiteStore(path)):
            pass
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 23, 1))
        monkeypatch.setattr(sqlite3, "sqlite_version", "3.23.1")
        with unchanged(path):
            for use in (
                SQLiteStore(path).claim("a", feed="f"),
                SQLiteStore(path, transactional=True).claim("a", feed="f"),
            ):
                with pytest.raises(
                    StoreError, match=r"state\.db cannot be used with SQLite 3\.23\.1; .* 3\.24\.0 or newer"
                ):
                    await use
            with pytest.raises(StoreError, match=r"SQLite 3\.23\.1"):
                SQLiteReader(path).snapshot()

    def test_a_version_without_json_functions_is_refused(self):
        class WithoutJSON:
            def execute(self, sql):
                if "json_each(" in sql:
                    raise sqlite3.OperationalError("no such table: json_each")
                return self

            def fetchone(self):
                return (0,)

        with pytest.raises(StoreError, match="without its JSON functions"):
            schema.schema_version(WithoutJSON(), "x.db")
