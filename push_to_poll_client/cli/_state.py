"""`push-to-poll status`, `rewind` and `rebind`: read and change the state file of consumers.

`status` and `rewind --list` only read the file and work while a consumer runs. The others change the file and work
only while no process owns it.
"""

import argparse
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TypeVar

import anyio

from push_to_poll_client._exceptions import StoreBusy, StoreError
from push_to_poll_client._http.origins import identity, parse_http_url
from push_to_poll_client._options import INCEPTION, LATEST, meant_position
from push_to_poll_client._options import check_cursor as check_position
from push_to_poll_client._position import MOVED_STATE, saved_before
from push_to_poll_client._protocols import Session
from push_to_poll_client._types import MAX_CURSOR, Cursor, SavedCursor
from push_to_poll_client._validation import MAX_IDENTITY, check_number, quoted
from push_to_poll_client.cli._output import (
    UsageError,
    escape_unprintable,
    format_time,
    print_lines,
    shell_quoted,
)
from push_to_poll_client.cli._parser import Commands
from push_to_poll_client.stores import SQLiteStore
from push_to_poll_client.stores._names import Rebind
from push_to_poll_client.stores._sqlite.owner_lock import lock_holder
from push_to_poll_client.stores._sqlite.reader import ConsumerProgress, StoreFile, read_cursors, read_store

_T = TypeVar("_T")

_MAX_NAMES = 5
"""Names that an error lists, so that they fit on one line."""

JSON_HELP = """\
print one JSON object with file, bytes, owner (process id; null: no owner is visible) and consumers, a list of
objects with name, feed, cursor (null: the beginning), records (number of settled messages on record),
dead_letters (number), failing (number of failed messages that will be retried), gap (the feed's last report of
messages that it no longer has; null: none), gap_at (time of that report), fencing_token (increases with each
start), last_progress (time of the newest record; null: no record) and age (seconds since last_progress). Times
are in seconds since the epoch. Later versions may add members, but do not change these"""

FORGET_EFFECTS = {
    False: "messages that were processed are not processed again while their records are kept",
    True: "all messages after this cursor are processed again",
}
"""The last line of the output of `rewind`, without and with `--forget`."""

REBIND_EFFECTS = {
    False: "the next run continues at this cursor, with the same records and dead letters",
    True: "the next run continues at this cursor; if it means something else there, use push-to-poll rewind",
}
"""The last line of the output of `rebind`, for the same feed and for another feed."""


def add_to(commands: Commands) -> None:
    parser = commands.add(
        "status",
        print_status,
        help="show the progress of the consumers in a state file",
        description="Show the progress of the consumers in a state file. The command only reads the file and does "
        "not disturb a running consumer.",
    )
    parser.add_argument(
        "--state", metavar="FILE", required=True, help="the state file given to tail or to SQLiteStore"
    )
    parser.add_argument("--json", action="store_true", help=JSON_HELP)

    parser = commands.add(
        "rewind",
        rewind,
        help="set the cursor at which the next run continues",
        description="Set the cursor at which the next run continues; this works only while no consumer uses the "
        "file. Or list the saved cursors; this works while a consumer runs.",
    )
    add_state_to(parser)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--to", metavar="CURSOR", help="a cursor, as --list shows it, or inception for the beginning of the feed"
    )
    where.add_argument(
        "--ago", metavar="S", type=float, help="the newest cursor that was saved at least S seconds ago"
    )
    where.add_argument(
        "--list", action="store_true", help="list the saved cursors, the current one last, and change nothing"
    )
    parser.add_argument(
        "--forget",
        action="store_true",
        help="ignore the records of processed messages: all messages after the cursor are processed again. For a "
        "feed that was reset",
    )

    parser = commands.add(
        "rebind",
        rebind,
        help="keep a consumer's state when its feed has a new address, or rename the consumer",
        description="Bind a consumer to the new address of its feed, or rename the consumer. This works only "
        "while no consumer uses the file. The consumer keeps its cursor, records and dead letters. Use it only "
        "for the same feed at another address: to another feed the cursor means something else, and messages "
        "would be missed.",
    )
    add_state_to(parser)
    parser.add_argument(
        "--feed",
        metavar="URL",
        help="the feed's new URL, or its identity as given to identity= or shown by an error. A consumer that was "
        "started without a name is called like its feed, so it gets the new name too",
    )
    parser.add_argument("--new-name", metavar="NAME", help="the consumer's new name")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="if a consumer with the new name exists (for example after a start under that name), delete its "
        "state first. Messages that only that consumer processed are processed again",
    )


def add_state_to(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--state", metavar="FILE", required=required, help="the state file given to tail or to SQLiteStore"
    )
    parser.add_argument("--name", metavar="NAME", help="the consumer's name; required if the file has several")


def find_consumer(options: argparse.Namespace) -> ConsumerProgress:
    """Return the consumer given by --name, or the only consumer of the file."""
    if options.state is None:
        raise UsageError("--state is missing; give the state file of the consumer")
    store = read_store(options.state)
    if not store.progress:
        raise StoreError(f"{store.path} contains no consumer yet; run a consumer with this file first")
    if options.name is None and len(store.progress) == 1:
        return store.progress[0]
    found = [one for one in store.progress if options.name in {one.name, quoted(one.name)[1:-1]}]
    if len(found) != 1:
        why = "is missing" if options.name is None else "is not a consumer of the file"
        names = ", ".join(quoted(one.name) for one in store.progress[:_MAX_NAMES])
        more = len(store.progress) - _MAX_NAMES
        raise UsageError(f"--name {why}; choose one of {names}" + (f" and {more} more" if more > 0 else ""))
    return found[0]


def run_with_store(path: str, work: Callable[[SQLiteStore], Awaitable[_T]], *, instead: str = "") -> _T:
    """Change a state file that no process owns. The error names `instead` as the alternative to stopping."""

    async def run() -> _T:
        # No retention, so that this store drops no record of the consumer. Transactional, because the file may
        # also be an application's database.
        store = SQLiteStore(path, retention=None, max_records=None, transactional=True)
        try:
            return await work(store)
        except StoreBusy as busy:
            owner = lock_holder(store.path)
            raise StoreBusy(
                f"{store.path} is in use by {'another process' if owner is None else f'process {owner}'}; stop it "
                f"first{instead}"
            ) from busy

    return anyio.run(run)


def run_with_session(
    progress: ConsumerProgress, path: str, work: Callable[[Session], Awaitable[_T]], *, instead: str
) -> _T:
    """Claim a consumer's name, do the work, and release the name."""

    async def claim_and_work(store: SQLiteStore) -> _T:
        session = await store.claim(progress.name, feed=progress.feed)
        try:
            return await work(session)
        finally:
            await session.release()

    return run_with_store(path, claim_and_work, instead=f", or call {instead} of its consumer there")


def check_cursor(option: str, typed: str) -> None:
    """Check that an argument can be a cursor, and is not a misspelled `inception` or `latest`."""
    _check_text(option, typed, "a cursor of the feed", MAX_CURSOR)
    check_position(option, typed)


def _check_text(option: str, typed: str, what: str, longest: int) -> None:
    try:
        typed.encode()
    except UnicodeEncodeError:  # bytes that are not text
        typed = ""
    if not 0 < len(typed) <= longest:
        raise UsageError(f"{option} must be {what}, with 1 to {longest:,} characters")


def print_status(options: argparse.Namespace) -> None:
    store, now = read_store(options.state), time.time()
    if options.json:
        members = {
            "file": store.path,
            "bytes": store.size,
            "owner": store.owner,
            "consumers": [{**asdict(progress), "age": _age(progress, now)} for progress in store.progress],
        }
        print_lines([json.dumps(members)])
    else:
        print_lines(f"{name:<10}{value}".rstrip() for name, value in _fields(store, now))


def _fields(store: StoreFile, now: float) -> Iterator[tuple[str, object]]:
    yield "file", quoted(store.path, 1000)
    yield "size", f"{store.size:,} bytes"
    yield "owner", "none" if store.owner is None else f"process {store.owner}"
    for progress in store.progress:
        gap = done = None
        if progress.gap is not None and progress.gap_at is not None:
            gap = f"{quoted(progress.gap, 500)}, at {format_time(progress.gap_at)} UTC"
        if progress.last_progress is not None:
            done = f"{_age(progress, now):,.1f} s ago, at {format_time(progress.last_progress)} UTC"
        yield "", ""
        yield "name", quoted(progress.name)
        yield "feed", quoted(progress.feed)
        yield "cursor", "the beginning" if progress.cursor is None else quoted(progress.cursor)
        yield "records", f"{progress.records:,}"
        yield "dead", f"{progress.dead_letters:,}"
        yield "failing", f"{progress.failing:,}"
        yield "gap", gap or "none"
        yield "progress", done or "none yet"
        yield "token", progress.fencing_token


def _age(progress: ConsumerProgress, now: float) -> float | None:
    # Clocks of two processes may differ.
    return None if progress.last_progress is None else max(0.0, now - progress.last_progress)


def rewind(options: argparse.Namespace) -> None:
    """List the saved cursors, or set the cursor of the next run."""
    if options.list and options.forget:
        raise UsageError("--list changes nothing; leave out --forget")
    if options.to is not None and meant_position(options.to) == LATEST:
        raise UsageError(
            "--to latest is not possible here, because only the feed knows its end; call rewind('latest') of the "
            "consumer, or give a cursor"
        )
    try:
        if options.ago is not None:
            check_number("--ago", options.ago)
        if options.to is not None:
            check_cursor("--to", options.to)
    except ValueError as error:
        raise UsageError(str(error)) from error
    progress = find_consumer(options)
    if options.list:
        saved = read_cursors(options.state, progress.name)
        rows = (f"{format_time(one.read_at):<19}  {_display_cursor(one.cursor)}" for one in saved)
        print_lines([f"{'saved (UTC)':<19}  cursor", *rows])
        return

    async def reset(session: Session) -> tuple[Cursor | None, Cursor | None]:
        before, target = session.cursor, _target_cursor(options, session.history)
        await session.reset(target, forget=options.forget, state=MOVED_STATE)
        return before, target

    before, target = run_with_session(progress, options.state, reset, instead="rewind()")
    print_lines(
        [
            f"before  {_display_cursor(before)}",
            f"now     {_display_cursor(target)}",
            f"then    {FORGET_EFFECTS[options.forget]}",
        ]
    )


def _target_cursor(options: argparse.Namespace, history: Sequence[SavedCursor]) -> Cursor | None:
    """Return the cursor given by --to or --ago. None means the inception."""
    if options.to is None:
        saved = saved_before(history, time.time() - options.ago)
        if saved is None:
            raise UsageError(
                f"--ago: no saved cursor is that old; the oldest is from {format_time(history[0].read_at)} UTC"
            )
        return saved.cursor
    shown: dict[str, Cursor] = {escape_unprintable(one.cursor): one.cursor for one in history if one.cursor}
    return None if options.to == INCEPTION else shown.get(options.to, options.to)


def _display_cursor(cursor: Cursor | None) -> str:
    return INCEPTION if cursor is None else shell_quoted(cursor)


def rebind(options: argparse.Namespace) -> None:
    """Bind a consumer to another feed or rename it, and print the old and the new values."""
    feed, new_name = options.feed, options.new_name
    if feed is None and new_name is None:
        raise UsageError("give --feed, --new-name or both")
    if feed is not None:
        _check_text("--feed", feed, "the feed's URL or identity", MAX_IDENTITY)
        feed = _identity(feed)
    if new_name is not None:
        _check_text("--new-name", new_name, "a name", MAX_IDENTITY)
    before = find_consumer(options)
    name = Rebind(before.name, feed, new_name, options.replace).target(before.feed)
    dropped = [one for one in read_store(options.state).progress if one.name == name != before.name]
    if dropped and not options.replace:
        raise UsageError(
            f"the file already has a consumer {quoted(name)}; choose another name, or delete its "
            "state with --replace"
        )

    run_with_store(
        options.state,
        lambda store: store.rebind(before.name, feed=feed, new_name=name, replace=options.replace),
    )
    bound_to = before.feed if feed is None else feed
    print_lines(
        [
            f"name    {shell_quoted(before.name)}",
            f"now     {shell_quoted(name)}",
            f"feed    {shell_quoted(before.feed)}",
            f"now     {shell_quoted(bound_to)}",
            f"cursor  {_display_cursor(before.cursor)}",
            *(
                f"deleted {one.records:,} records and {one.dead_letters:,} dead letters of the replaced consumer"
                for one in dropped
            ),
            f"then    {REBIND_EFFECTS[bound_to != before.feed]}",
        ]
    )


def _identity(typed: str) -> str:
    """Return the identity of a feed given by its URL, or by its identity as an error shows it."""
    shown = typed.replace(r"\u2026", "…")
    # An identity with a query contains "…", a URL does not.
    if "…" in shown or not re.match("https?://", shown, re.IGNORECASE):
        return shown
    try:
        parse_http_url(shown)
    except ValueError as error:
        raise UsageError(f"--feed: {error}") from None
    return identity(shown)
