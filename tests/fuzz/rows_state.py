"""Rows for state files, dead letters, and arguments of the command line."""

import contextlib
import io
import json
import re
import sqlite3
import struct
import tempfile
from pathlib import Path
from types import SimpleNamespace

from push_to_poll_client import DeadLetter, StoreError
from push_to_poll_client._dead_letters import as_json, restore_from_json
from push_to_poll_client._position import Position
from push_to_poll_client._progress import Attempts, TimeOfDay
from push_to_poll_client._types import SavedCursor
from push_to_poll_client.cli import _dead_letters, _state, _tail
from push_to_poll_client.cli._exec import _argv
from push_to_poll_client.cli._output import UsageError, escape_unprintable, format_time, shell_quoted, unescape
from push_to_poll_client.cli._parser import Commands, Parser
from push_to_poll_client.cli._state import _identity, check_cursor
from push_to_poll_client.cli._tail import listener_for, same_server
from push_to_poll_client.stores._retention import Retention
from push_to_poll_client.stores._sqlite.dead_letters import StoredDeadLetters
from push_to_poll_client.stores._sqlite.errors import wrap_sqlite_errors
from push_to_poll_client.stores._sqlite.file import check_size
from push_to_poll_client.stores._sqlite.owner_lock import _locked_by
from push_to_poll_client.stores._sqlite.reader import select_progress
from push_to_poll_client.stores._sqlite.records import Records, encode_keys
from push_to_poll_client.stores._sqlite.schema import MIGRATIONS, encode_text, schema_version
from push_to_poll_client.stores._sqlite.schema import decode_text as text_restored
from push_to_poll_client.stores._sqlite.session import ClaimedName, read_history, read_state, select_consumer
from push_to_poll_client.stores._sqlite.wal import Mark, check_wal
from tests.fuzz.fuzzed import Fuzzed, around, nested, text_of, words
from tests.fuzz.rows_feeds import JSON_TOKENS
from tests.support.identities import cheap_identities

__all__ = ["ROWS"]

CELLS = {
    "push_to_poll_schema": ("?",),
    "push_to_poll_consumer(id, name, feed, token, cursor, at, first, behind)": (
        "1",
        "?",
        "?",
        "?",
        "?",
        "?",
        "?",
        "?",
    ),
    "push_to_poll_segment": ("1", "?", "?", "?", "?", "?", "?"),
    "push_to_poll_dead_letter": ("1", "?", "?", "?", "?", "?", "?", "?", "?", "?", "?"),
    "push_to_poll_history": ("1", "1", "1", "?", "?"),
    "push_to_poll_state(consumer, name, value)": ("1", "'gap'", "?"),
}
"""A row for each table; the input gives the values, in this order."""

_file = sqlite3.connect(":memory:", isolation_level=None)
for _step in MIGRATIONS:
    for _statement in _step:
        _file.execute(_statement)
_file.execute("CREATE TABLE push_to_poll_schema(version)")
_opened = SimpleNamespace(connection=_file, path="the file", transaction=contextlib.nullcontext)


def read_file(data):
    """Read a store after another program wrote to it."""
    values = [_cell(line) for line in data.split(b"\n")]
    with contextlib.suppress(sqlite3.IntegrityError):  # SQLite rejects the row
        _fill(values)
    for read in READERS:
        with contextlib.suppress(StoreError), wrap_sqlite_errors("the file"):
            read()


def read_place():
    read_history(_file, 1)
    state = read_state(_file, 1)
    assert all(isinstance(value, str) for pair in state.items() for value in pair)


READERS = (
    lambda: schema_version(_file, "the file"),
    lambda: select_progress(_file),
    lambda: StoredDeadLetters(_file, 1).read_some(None),
    lambda: Records(_file, 1, Retention(1e6, 100), first=1, prunable_before=1).are_new(["k"]),
    lambda: ClaimedName(_opened, "name", "feed", retention=Retention(1e6, 100), clock=lambda: 1.0),
    lambda: select_consumer(_file, "name"),
    read_place,
)


def _cell(line):
    """Make a value of one of SQLite's types; the first byte selects the type."""
    kind, rest = line[:1], line[1:]
    with contextlib.suppress(ValueError, OverflowError):
        match kind:
            case b"i":
                return max(-(1 << 63), min(int(rest), (1 << 63) - 1))
            case b"f":
                return float(rest)
            case b"b":
                return rest
            case b"n":
                return None
    return rest.decode("latin-1")


def _fill(values):
    for table in CELLS:
        _file.execute(f"DELETE FROM {table.partition('(')[0]}")  # noqa: S608
    for table, cells in CELLS.items():
        given = [values.pop(0) if values else 0 for _ in range(cells.count("?"))]
        _file.execute(f"INSERT INTO {table} VALUES ({', '.join(cells)})", given)  # noqa: S608


def read_attempts(data):
    attempts = Attempts({"attempts": _kept(data)}, TimeOfDay(lambda: 0.0))
    change = attempts.record_failure("a") and attempts.take_changes()
    assert len(Attempts(change, TimeOfDay(lambda: 0.0))) == len(attempts)
    assert attempts.wait_of("a") is None or attempts.wait_of("a").again > attempts.now


def read_looked(data):
    saved = [SavedCursor(f"{n}", float(n)) for n in range(9)]
    session = SimpleNamespace(state={"looked": _kept(data)}, history=saved, cursor=saved[-1].cursor)
    options = SimpleNamespace(overlap=2.0, max_poll_time=30.0)
    progress = SimpleNamespace(time_of_day=TimeOfDay(lambda: 9.0))
    position = Position(options, session, None, lambda: 9.0, fetcher=None, progress=progress)
    assert position.begin_walk().start in [one.cursor for one in saved]


def _kept(data):
    """Restore a text from a file."""
    try:
        return text_restored(data)
    except UnicodeDecodeError:
        return text_of(data)


def read_text(data):
    """Encode and restore a text; keys are unique and printable for SQLite."""
    text = text_of(data)
    assert text_restored(encode_text(text)) == text
    keys = encode_keys([text, f"{text}x"])
    assert len(set(keys)) == 2
    for key in keys:
        key.encode()
        assert "\0" not in key


def read_letter(data):
    letter = DeadLetter(dedupe_key=text_of(data), id="1", raw=data, error=text_of(data), traceback=text_of(data))
    written = json.loads(as_json(letter))
    assert written["raw"].encode() == data if "raw" in written else written["raw_base64"]
    message = restore_from_json(letter)
    assert message.id == "1"


def read_shown(data):
    text = text_of(data)
    shown = escape_unprintable(text)
    assert shown.isprintable()
    if "\\" not in text and not re.search("[\ud800-\udfff]", text):
        assert unescape(shown) == text
    assert isinstance(unescape(text), str)
    assert shell_quoted(text).isprintable()
    if text.isdecimal() and len(text) < 300:
        assert format_time(float(text))


def read_push(data):
    push, _, feed = text_of(data).partition(" ")
    same_server(push, feed)
    assert listener_for(push, feed=feed, token="t").name.isprintable()


def read_command(data):
    check_cursor("--to", text_of(data))
    with cheap_identities():
        assert _identity(text_of(data))
    assert _argv(text_of(data))


_typed = Parser(prog="push-to-poll", description="as the command itself makes it")
_commands = Commands(_typed)
for _command in (_tail, _state, _dead_letters):
    _command.add_to(_commands)


def read_arguments(data):
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            _typed.parse_args(text_of(data).split("\n"))
        finally:
            assert all(line.isprintable() for line in said.getvalue().splitlines())


def read_locks(data):
    place = SimpleNamespace(st_dev=2049, st_ino=42)
    holder = _locked_by(text_of(data), place, 7)
    assert holder is None or holder >= 0


PAGE = 512
_beside = tempfile.TemporaryDirectory()
_database = Path(_beside.name, "state.db")


def read_wal(data):
    """Check a database with a file beside it as its WAL; the first two bytes are the length of the database."""
    size = int.from_bytes(data[:2]) % (len(data) + 1)
    wal = Path(f"{_database}-wal")
    wal.unlink(missing_ok=True)
    _database.write_bytes(data[2 : 2 + size])
    with contextlib.suppress(StoreError):
        check_size(_database)
    wal.write_bytes(data[2 + size :])
    check_wal(str(_database))


def _page(mark, *, junk=b""):
    """Make a leaf page with one cell that contains the mark."""
    cell = bytes((3 + len(mark), 1, 3, 0, 12 + 2 * len(mark))) + mark
    start = PAGE - len(cell)
    head = b"\x0d\0\0\0\1" + b"\0\0\0" + start.to_bytes(2)
    return head + junk + bytes(start - len(head) - len(junk)) + cell


def _wal_example(mark, *marks, junk=b""):
    """Make a database with one mark, and a WAL with other marks."""
    main = b"SQLite format 3\0" + PAGE.to_bytes(2) + b"\2\2" + bytes(PAGE - 20) + _page(mark.encode())
    wal = struct.pack(">8I", 0x377F0682, 3_007_000, PAGE, 0, 1, 2, 0, 0)
    for one in marks:
        wal += struct.pack(">6I", 2, 2, 1, 2, 0, 0) + _page(one.encode(), junk=junk)
    return len(main).to_bytes(2) + main + wal


ROWS = (
    Fuzzed(
        name="a WAL and its database",
        modules=("stores._sqlite.wal", "stores._sqlite.file"),
        read=read_wal,
        errors=(StoreError,),
        examples=(
            _wal_example(Mark(2, b"a" * 8, b"0" * 8), Mark(2, b"b" * 8, b"a" * 8), Mark(2, b"c" * 8, b"b" * 8)),
            _wal_example(Mark(2, b"x" * 8, b"0" * 8), Mark(2, b"b" * 8, b"a" * 8)),
            _wal_example(Mark(2, b"x" * 8, b"0" * 8), Mark(2, b"b" * 8, bytes(8)), junk=b"\x0d"),
        ),
        tokens=words(r"SQLite\x20format\x203\x00 \x0d\x00 \x00 \xff push_to_poll\x20wal \x01\x01 \x02\x02"),
    ),
    Fuzzed(
        name="state files",
        modules=(
            "stores._sqlite.schema",
            "stores._sqlite.dead_letters",
            "stores._sqlite.reader",
            "stores._sqlite.records",
            "stores._sqlite.session",
            "stores._sqlite.errors",
        ),
        read=read_file,
        examples=(
            b'i1\ntname\ntfeed\ni1\ntcursor\nf5.5\ni1\ni1\ni1\ni2\nf1\nf2\nta\ntb\nbkey\ntkey\ni0\ntid\ni3\nf1\nf2\nterr\nt\nbraw\ntc\nf1\nt{"what":"w","at":1.5,"place":"p"}',
            b"i1\ntname\ntfeed\ni1\nn\nf5.5\ni1\ni1\ni1\ni2\nf1\nf2\nta\ntb\nb\xff\ntkey",
            b"i1\nbn\xff\nb\xed\xa0\x80\ni1\ni9",
        ),
        tokens=words(r'\nt \nb \ni \nf \nn 9 - inf nan \xff \xed\xa0\x80 \x00 {"what": "at":'),
        frame=(b"t", b""),
        found=(b"i1\nbn\ni\xff\nb\xed\xa0\x80\ni1\xff\nb\xed\xa0\x80\ni1\n\x0e9",),
    ),
    Fuzzed(
        name="attempts",
        modules=("_progress",),
        read=read_attempts,
        errors=(StoreError,),
        examples=(b'{"a":[1,2.5,3.0,0.5],"b":[2,1.0]}', b"{}"),
        tokens=(
            *words(r'"a" [1,1.0] "b":[1,1.0],'),
            *JSON_TOKENS,
        ),
        frame=(b'{"a":[1,1.0],', b"}"),
        hostile={
            "attempts": around(b"{", b'"a":[1,1.0],', b'"b":[1,1.0]}'),
            "more of them": nested(b"[", b"]", b'{"a":[1,1.0,1.0,1.0,', b"]}"),
        },
        found=(b"\xff{}", b'{"a":[1,1.0,1.0,1.0,' + b"[" * 5000 + b"]" * 5000 + b"]}"),
    ),
    Fuzzed(
        name="the time of the last overlap",
        modules=("_position",),
        read=read_looked,
        errors=(StoreError,),
        examples=(b"5.5", b"-inf", b"1e9"),
        tokens=words(r"nan inf - e 9 . _ \x20 \xff"),
        found=(b"", b"\xff"),
    ),
    Fuzzed(
        name="texts in a file",
        modules=("stores._sqlite.schema",),
        read=read_text,
        examples=(b"key", b"\xff\x7f", b"a\0b", b"k" * 201),
        tokens=words(r"\x00 \x7f \xff \xed\xa0\x80 a \xf0\x9f\x98\x80"),
    ),
    Fuzzed(
        name="dead letters",
        modules=("_dead_letters",),
        read=read_letter,
        errors=(ValueError, RecursionError),
        examples=(b'{"a": 1}', b"\xff", b'"\\ud83d\\ude00"'),
        tokens=JSON_TOKENS,
        hostile={"nested": nested(b"[", b"]")},
        found=(b'{"\x80"1}1}', b"[" * 5000 + b"]" * 5000),
    ),
    Fuzzed(
        name="texts on a terminal",
        modules=("cli._output",),
        read=read_shown,
        examples=(b"key\x1b[31m", b"\\u001b\\ud83d\\ude00\\n", b"\xff\xe2\x80\xae", b"99999999999999999999"),
        tokens=words(r"\\u001b \\ud83d \\ \x1b \n ' \xff \xf0\x9f\x98\x80 \xe2\x80\xae"),
    ),
    Fuzzed(
        name="addresses of push channels",
        modules=("cli._tail", "listeners._base", "listeners.sse", "listeners.websocket"),
        read=read_push,
        errors=(ValueError,),
        examples=(
            b"wss://a.example/push https://a.example/feed",
            b"https://user:pw@h/x?y=z http://h",
            b"ws://[::1]:9 http://[::1]:9",
        ),
        tokens=words(r"ws:// wss:// https:// http:// \x20 : @ / ? [ ] % # \xff \xc3\xbc 9"),
        frame=(b"ws://h", b" http://h"),
    ),
    Fuzzed(
        name="commands and cursors",
        modules=("cli._exec", "cli._state"),
        read=read_command,
        errors=(UsageError, ValueError),
        examples=(b'cat \'a b\' "c\\"d"', b"cat", b"no-such-command x", b"https://h/orders?limit=9"),
        tokens=words(r"""cat\x20 ' " \\ \x20 # \x00 \xff \n / """),
        frame=(b"cat ", b""),
    ),
    Fuzzed(
        name="arguments",
        modules=("cli._parser",),
        read=read_arguments,
        errors=(SystemExit,),
        examples=(
            b"tail\nhttps://h/\n--store\nf\n--once",
            b"status\n--store\nf\n--json",
            b"nothing",
            b"--help",
            b"tail\n--timeout\n\x1b[31m",
        ),
        tokens=words(r"tail\n status\n rewind\n dead-letters\n --store\n --ago\n -- - = \n \x1b \xff 9"),
        frame=(b"tail\n", b""),
    ),
    Fuzzed(
        name="locks",
        modules=("stores._sqlite.owner_lock",),
        read=read_locks,
        examples=(b"1: FLOCK  ADVISORY  WRITE 7 08:01:42 0 EOF\n2: POSIX ADVISORY READ 8 08:01:43 0 EOF\n",),
        tokens=words(r"1:\x20FLOCK\x20\x20ADVISORY\x20\x20WRITE\x20 7\x20 08:01:42\x20 \n \x20 : 9"),
        frame=(b"1: FLOCK ", b""),
    ),
)
