"""`push-to-poll dead-letters`: list, show, export, retry and drop dead letters.

`list`, `show` and `export` only read the store and work while a consumer runs. `retry` and `drop` change a SQLite
file, and work only while no process owns it. In PostgreSQL they mark dead letters, and the owner of the name
retries or drops them at its next poll.
"""

import argparse
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

import msgspec

from push_to_poll_client._dead_letters import as_json
from push_to_poll_client._json import decode
from push_to_poll_client._protocols import Session
from push_to_poll_client._types import DeadLetter, Record, Settlement
from push_to_poll_client._validation import one_line
from push_to_poll_client.cli._output import (
    UsageError,
    escape_unprintable,
    format_time,
    print_lines,
    shell_quoted,
    unescape,
)
from push_to_poll_client.cli._parser import Commands
from push_to_poll_client.cli._state import add_consumer_to
from push_to_poll_client.cli._stores import DatabaseStore, find_consumer, require_store
from push_to_poll_client.stores.reader import Request, StoreReader, all_dead_letters

JSON_HELP = """\
print one JSON object per line, with the members dedupe_key, id, error, attempts, first_failed and last_failed
(both in seconds since the epoch), retry_requested (true: the owner of the name, or the next run, retries it) and
drop_requested (true: it drops it). Later versions may add members, but do not change these"""

KEY_HELP = "the key that list shows, or the id of the message; put -- before a key that starts with -"


def add_to(commands: Commands) -> None:
    parser = commands.add(
        "dead-letters",
        None,
        help="list, show, export, retry or drop dead letters",
        description="Dead letters are messages that failed in every attempt. list, show and export work while a "
        "consumer runs. With a SQLite file, retry and drop work only while no consumer uses it. In PostgreSQL "
        "they mark dead letters, and the owner of the name retries or drops them at its next poll.",
    )
    add_consumer_to(parser)  # the options may also follow the action
    actions = Commands(parser)
    listing = _add(actions, "list", _list, "list all dead letters, one per line")
    listing.add_argument("--json", action="store_true", help=JSON_HELP)
    show = _add(actions, "show", _show, "show one dead letter with its traceback and its entry in the feed")
    show.add_argument("keys", metavar="KEY", nargs=1, help=KEY_HELP)
    show.add_argument("--json", action="store_true", help="print it in the format of export")
    retry = _add(
        actions,
        "retry",
        _retry,
        "mark dead letters: the next run, or in PostgreSQL the next poll of the owner, retries each of them once "
        "before it reads the feed",
    )
    retry.add_argument("keys", metavar="KEY", nargs="*", help=KEY_HELP)
    retry.add_argument("--all", action="store_true", help="mark all dead letters")
    drop = _add(actions, "drop", _drop, "drop dead letters for good; their messages count as skipped")
    drop.add_argument("keys", metavar="KEY", nargs="+", help=KEY_HELP)
    _add(
        actions,
        "export",
        _export,
        "print all dead letters in full, one JSON object per line: the members of list --json, traceback, and "
        "raw, the entry of the feed (raw_base64 if the entry is not text)",
    )


def _add(
    actions: Commands, name: str, run: Callable[[argparse.Namespace], None], help: str
) -> argparse.ArgumentParser:
    parser = actions.add(name, run, help=help, description=f"{help[0].upper()}{help[1:]}.")
    for option in ("--store", "--schema", "--name"):
        parser.add_argument(option, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _list(options: argparse.Namespace) -> None:
    store = require_store(options)
    letters = all_dead_letters(store.reader, find_consumer(options, store).name)
    print_lines(map(_summary, letters) if options.json else table_lines(letters))


def _show(options: argparse.Namespace) -> None:
    store = require_store(options)
    name = find_consumer(options, store).name
    (key,) = _find_keys(options, store.reader, name)
    letter = store.reader.dead_letter(name, key)
    if letter is None:  # a consumer has settled it meanwhile
        raise _unknown_key(1)
    print_lines([as_json(letter)] if options.json else detail_lines(letter))


def _export(options: argparse.Namespace) -> None:
    store = require_store(options)
    print_lines(map(as_json, all_dead_letters(store.reader, find_consumer(options, store).name)))


def _retry(options: argparse.Namespace) -> None:
    if options.all == bool(options.keys):
        raise UsageError("retry needs either keys or --all")

    async def mark(session: Session, keys: Sequence[str]) -> int:
        # In batches: one entry may take megabytes.
        last: DeadLetter | None = None
        while options.all and (letters := await session.dead_letters(after=last)):
            await session.commit(cursor=None, records=[], dead_letters=list(map(_marked, letters)))
            last = letters[-1]
        marked = session.dead_letter_count if options.all else 0
        for key in keys:
            if letter := await session.dead_letter(key):  # else a consumer has settled it meanwhile
                await session.commit(cursor=None, records=[], dead_letters=[_marked(letter)])
                marked += 1
        return marked

    _change(options, mark, "retry", "marked; the next run retries {}")


def _drop(options: argparse.Namespace) -> None:
    async def drop(session: Session, keys: Sequence[str]) -> int:
        there = [key for key in keys if await session.dead_letter(key)]  # the others were settled meanwhile
        # Keep the fingerprint, so that different content under the same id is still noticed.
        known = await session.fingerprints(there)
        records = [Record(key, Settlement.SKIPPED, known.get(key)) for key in there]
        await session.commit(cursor=None, records=records)
        return len(there)

    _change(options, drop, "drop", "deleted and will not be retried")


def _change(
    options: argparse.Namespace,
    change: Callable[[Session, Sequence[str]], Awaitable[int]],
    action: Request,
    what: str,
) -> None:
    """Find the dead letters, change them, and print their number."""
    store = require_store(options)
    consumer = find_consumer(options, store)
    keys = _find_keys(options, store.reader, consumer.name)
    if isinstance(store, DatabaseStore):
        count = store.request(consumer.name, keys or None, action)
        does = "retries" if action == "retry" else "drops"
        what = f"marked; the owner of the name {does} {{}} at its next poll, or the next run does if there is none"
    else:
        count = store.run_with_session(
            consumer, lambda session: change(session, keys), instead=f"dead_letters.{action}()"
        )
    are, them = ("letter is", "it") if count == 1 else ("letters are", "them")
    print_lines([f"{count} dead {are} {what.format(them)}"])


def _find_keys(options: argparse.Namespace, reader: StoreReader, name: str) -> Sequence[str]:
    """Find dead letters by the typed keys or ids, plain or with the escapes of our output."""
    found: dict[str, None] = {}
    for number, typed in enumerate(options.keys, 1):
        keys, more = reader.find_dead_letters(name, typed)
        if not keys:
            keys, more = reader.find_dead_letters(name, unescape(typed))
        if not keys:
            raise _unknown_key(number)
        if len(keys) > 1:
            shown = ", ".join(shell_quoted(key[:_LONGEST_KEY]) for key in keys)
            raise UsageError(
                f"argument {number} is the id of several dead letters; give a key instead: {shown}"
                f"{', or another key that list shows' if more else ''}"
            )
        found[keys[0]] = None
    return list(found)


def _marked(letter: DeadLetter) -> DeadLetter:
    return msgspec.structs.replace(letter, retry_requested=True, drop_requested=False)


def _unknown_key(number: int) -> UsageError:
    return UsageError(
        f"argument {number} is neither the key nor the id of a dead letter; nothing was changed; "
        "push-to-poll dead-letters list shows the keys"
    )


def _summary(letter: DeadLetter) -> bytes:
    members = decode(as_json(msgspec.structs.replace(letter, raw=b"", traceback="")))
    del members["raw"], members["traceback"]
    return msgspec.json.encode(members)


_LONGEST_KEY = 1_000
"""Longest key, in characters, that the table shows in full. A longer key is cut."""


def table_lines(dead_letters: Iterable[DeadLetter]) -> Iterator[str]:
    """Yield one line per dead letter, with only one dead letter in memory at a time."""
    is_first = True
    for letter in dead_letters:
        if is_first:
            yield _row("last failed (UTC)", "attempts", "marked", "key", "error")
        is_first = False
        key = shell_quoted(letter.dedupe_key[:_LONGEST_KEY]) + (
            "..." if len(letter.dedupe_key) > _LONGEST_KEY else ""
        )
        yield _row(
            format_time(letter.last_failed),
            str(letter.attempts),
            _mark(letter),
            key,
            one_line(letter.error),
        )
    if is_first:
        yield "no dead letters"


def detail_lines(letter: DeadLetter) -> Iterator[str]:
    """Yield the fields of a dead letter, its traceback, and the entry of the feed."""
    fields = {
        "key": shell_quoted(letter.dedupe_key),
        "id": shell_quoted(letter.id),
        "error": escape_unprintable(letter.error),
        "attempts": str(letter.attempts),
        "first failed": f"{format_time(letter.first_failed)} UTC",
        "last failed": f"{format_time(letter.last_failed)} UTC",
        "marked": _mark(letter) or "no",
        "entry": f"{len(letter.raw):,} bytes",
    }
    for name, value in fields.items():
        yield f"{name:<14}{value}"
    if letter.traceback:
        yield ""
        yield from (f"  {escape_unprintable(line)}" for line in letter.traceback.rstrip("\n").split("\n"))
    yield ""
    yield from map(escape_unprintable, letter.raw.decode("utf-8", "backslashreplace").split("\n"))


def _mark(letter: DeadLetter) -> str:
    return "drop" if letter.drop_requested else "retry" if letter.retry_requested else ""


def _row(last: str, attempts: str, marked: str, key: str, error: str) -> str:
    return f"{last:<19}  {attempts:>8}  {marked:<6}  {key:<40}  {error}"
