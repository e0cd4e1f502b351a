"""`push-to-poll status`, `rewind` and `rebind`: read and change the file in which consumers keep their state.

`status` and `rewind --list` only read the file, also while a consumer uses it. The others change it, while no
process owns it.
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
"""Names that an error lists, so that they fit into its line."""

JSON_HELP = """\
print one JSON object: file, bytes, owner (process id; null: nobody that can be seen), consumers: a list of
objects with name, feed, cursor (null: the beginning), records (of messages that are settled), dead_letters
(how many), failing (how many messages failed and are to be tried again), gap (what the feed said last that it
can no longer give; null: nothing), gap_at (when, in seconds since the epoch), fencing_token (larger for each
start), last_progress (when the newest record was made, in seconds since the epoch; null: there is none) and
age (seconds since then). Members may be added, none will change"""

FORGET_EFFECTS = {
    False: "what comes again and was processed is not processed again, as long as its record is kept",
    True: "all that comes again is processed again",
}
"""The last line of the output of `rewind`, without and with `--forget`."""

REBIND_EFFECTS = {
    False: "it goes on from its cursor, with its records and dead letters",
    True: "it goes on from its cursor, which must mean the same there; if it does not: push-to-poll rewind",
}
"""The last line of the output of `rebind`, for the same feed and for another one."""


def add_to(commands: Commands) -> None:
    """Add the commands to the parser's commands."""
    parser = commands.add(
        "status",
        print_status,
        help="say how far the consumers are that keep their state in a file",
        description="Say how far the consumers are that keep their state in a file, whether they run or not. The "
        "file is only read, and a consumer that uses it is not disturbed.",
    )
    parser.add_argument("--state", metavar="FILE", required=True, help="the file, as it was given to tail")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)

    parser = commands.add(
        "rewind",
        rewind,
        help="go on from another place of the feed",
        description="Have the next run go on from another place of the feed, while no consumer uses the file; or "
        "list the places that were saved, at any time.",
    )
    add_state_to(parser)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--to", metavar="CURSOR", help="inception, the beginning of the feed, or a cursor, as --list shows it"
    )
    where.add_argument(
        "--ago", metavar="S", type=float, help="the newest cursor that was saved so many seconds ago, or before"
    )
    where.add_argument(
        "--list", action="store_true", help="change nothing; list the saved cursors, the present one last"
    )
    parser.add_argument(
        "--forget",
        action="store_true",
        help="forget what was processed: all that comes again is processed again; for a feed that was reset",
    )

    parser = commands.add(
        "rebind",
        rebind,
        help="go on with the same feed at another address, or under another name",
        description="Bind a consumer's name to the feed's new address, or rename it, while no consumer uses the "
        "file. It keeps its cursor, its records and its dead letters. Only for the same feed at another address: "
        "at another feed the cursor means something else, and messages would be missed.",
    )
    add_state_to(parser)
    parser.add_argument(
        "--feed",
        metavar="URL",
        help="the feed's new URL, or its identity, as given by identity= or as an error shows it. A name that is "
        "the feed's old identity, as that of a consumer without a name, becomes the new one",
    )
    parser.add_argument("--new-name", metavar="NAME", help="what the consumer is called from now on")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="if there is a consumer of that name already, as after a start under the new name, drop all that it "
        "has; what only that one has processed is processed again",
    )


def add_state_to(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options for the file and the consumer to a command."""
    parser.add_argument(
        "--state", metavar="FILE", required=required, help="the file, as it was given to tail or to SQLiteStore"
    )
    parser.add_argument("--name", metavar="NAME", help="the consumer's, if the file has several")


def find_consumer(options: argparse.Namespace) -> ConsumerProgress:
    """Return the consumer given by --name, or the only one of the file.

    Raises:
        StoreError: The file cannot be read, or has no consumer.
        UsageError: There are several, or none of that name, or no file is given.
    """
    if options.state is None:
        raise UsageError("--state is missing; name the file that the consumer keeps its state in")
    store = read_store(options.state)
    if not store.progress:
        raise StoreError(f"{store.path} has no consumer's state yet; run one that keeps its state there")
    if options.name is None and len(store.progress) == 1:
        return store.progress[0]
    found = [one for one in store.progress if options.name in {one.name, quoted(one.name)[1:-1]}]
    if len(found) != 1:
        why = "is missing" if options.name is None else "is none of them"
        names = ", ".join(quoted(one.name) for one in store.progress[:_MAX_NAMES])
        more = len(store.progress) - _MAX_NAMES
        raise UsageError(f"--name {why}; the file has {names}" + (f" and {more} more" if more > 0 else ""))
    return found[0]


def run_with_store(path: str, work: Callable[[SQLiteStore], Awaitable[_T]], *, instead: str = "") -> _T:
    """Change a file while no process owns it.

    Args:
        path: The file.
        work: Called with its store.
        instead: What can be done besides stopping the process that owns the file; for the error.

    Raises:
        StoreBusy: A process owns the file; the error names it.
        StoreError: The file cannot be written.
    """

    async def run() -> _T:
        # No retention: records that the consumer's own retention keeps must stay. Transactional: the file may be
        # an application's too.
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
    """Claim the name of a consumer in a file, do the work, and give the name back.

    Args:
        progress: The consumer.
        path: The file.
        work: Called with the session.
        instead: What the process that owns the file is to call; for the error.

    Raises:
        StoreBusy: A process owns the file.
        StoreError: The file cannot be written.
    """

    async def claim_and_work(store: SQLiteStore) -> _T:
        session = await store.claim(progress.name, feed=progress.feed)
        try:
            return await work(session)
        finally:
            await session.release()

    return run_with_store(path, claim_and_work, instead=f", or let it call {instead} of its consumer")


def check_cursor(option: str, typed: str) -> None:
    """Check that an argument can be a cursor of a feed.

    Raises:
        UsageError: It cannot, since it is empty, too long, or not valid text.
        ValueError: It is a slip of a word.
    """
    _check_text(option, typed, "a cursor of the feed", MAX_CURSOR)
    check_position(option, typed)


def _check_text(option: str, typed: str, what: str, longest: int) -> None:
    try:
        typed.encode()
    except UnicodeEncodeError:  # bytes that are no text
        typed = ""
    if not 0 < len(typed) <= longest:
        raise UsageError(f"{option} must be {what}, of 1 to {longest:,} characters")


def print_status(options: argparse.Namespace) -> None:
    """Print the progress of each consumer.

    Raises:
        StoreError: The file cannot be read.
        OutputError: Standard output cannot be written.
    """
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
    yield "owner", "nobody" if store.owner is None else f"process {store.owner}"
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
    # Not below 0, even if the clocks of two processes differ.
    return None if progress.last_progress is None else max(0.0, now - progress.last_progress)


def rewind(options: argparse.Namespace) -> None:
    """List the saved cursors, or go to one.

    Raises:
        StoreError: The file cannot be used.
        UsageError: An argument has no meaning.
    """
    if options.list and options.forget:
        raise UsageError("--list changes nothing, leave out --forget")
    if options.to is not None and meant_position(options.to) == LATEST:
        raise UsageError(
            "--to latest: where the feed ends only the feed can tell; call rewind('latest') of the consumer, or "
            "name a cursor"
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
    """Find the cursor that --to or --ago names; None is the inception."""
    if options.to is None:
        saved = saved_before(history, time.time() - options.ago)
        if saved is None:
            raise UsageError(
                f"--ago: no cursor is kept that is so old; the oldest is of {format_time(history[0].read_at)} UTC"
            )
        return saved.cursor
    shown: dict[str, Cursor] = {escape_unprintable(one.cursor): one.cursor for one in history if one.cursor}
    return None if options.to == INCEPTION else shown.get(options.to, options.to)


def _display_cursor(cursor: Cursor | None) -> str:
    return INCEPTION if cursor is None else shell_quoted(cursor)


def rebind(options: argparse.Namespace) -> None:
    """Bind a consumer's name to another feed or rename it, and print what it was and what it is.

    Raises:
        StoreError: The file cannot be used.
        UsageError: An argument has no meaning, or the new name exists already.
    """
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
            "the file has that name already; give another one, or drop all that it has with --replace"
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
                f"dropped {one.records:,} records and {one.dead_letters:,} dead letters that this name had"
                for one in dropped
            ),
            f"then    {REBIND_EFFECTS[bound_to != before.feed]}",
        ]
    )


def _identity(typed: str) -> str:
    """Return the identity of a feed that is given by its URL, or by its identity as an error shows it."""
    shown = typed.replace(r"\u2026", "…")
    # An identity with a query has "…" in it, which no URL has.
    if "…" in shown or not re.match("https?://", shown, re.IGNORECASE):
        return shown
    try:
        parse_http_url(shown)
    except ValueError as error:
        raise UsageError(f"--feed: {error}") from None
    return identity(shown)
