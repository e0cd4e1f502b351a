"""`push-to-poll status`, `rewind` and `rebind`: read and change the state of consumers.

`status` and `rewind --list` only read the store and work while a consumer runs. The others claim the consumer's
name, which works only while it has no owner. A process that uses a SQLite file owns all names in it.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from push_to_poll_client._http.origins import identity, parse_http_url
from push_to_poll_client._options import INCEPTION, LATEST, meant_position
from push_to_poll_client._options import check_cursor as check_position
from push_to_poll_client._position import MOVED_STATE, saved_before
from push_to_poll_client._protocols import Session, is_leased
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
from push_to_poll_client.cli._stores import add_store_to, find_consumer, require_store
from push_to_poll_client.stores._names import Rebind
from push_to_poll_client.stores.reader import ConsumerProgress, StoreSnapshot

JSON_HELP = """\
print one JSON object with store, bytes and consumers, a list of objects with name, feed, cursor (null: the
beginning), records (number of settled messages on record), dead_letters (number), failing (number of failed
messages that will be retried), gap (the feed's last report of messages that it no longer has; null: none), gap_at
(time of that report), owner (null: no owner is visible), fencing_token (increases with each start), last_progress
(time of the newest record; null: no record) and age (seconds since last_progress). Times are in seconds since the
epoch. Later versions may add members, but do not change these"""

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
        help="show the progress of the consumers in a store",
        description="Show the progress of the consumers in a store. The command only reads, and does not disturb "
        "a running consumer.",
    )
    add_store_to(parser)
    parser.add_argument("--json", action="store_true", help=JSON_HELP)

    parser = commands.add(
        "rewind",
        rewind,
        help="set the cursor at which the next run continues",
        description="Set the cursor at which the next run continues; this works only while no process owns "
        "the consumer's name. Or list the saved cursors; this works while a consumer runs.",
    )
    add_consumer_to(parser)
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
        "while no process owns its name. The consumer keeps its cursor, records and dead letters. Use it only "
        "for the same feed at another address: to another feed the cursor means something else, and messages "
        "would be missed.",
    )
    add_consumer_to(parser)
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


def add_consumer_to(parser: argparse.ArgumentParser) -> None:
    """Add the options that name one consumer of a store."""
    add_store_to(parser)
    parser.add_argument("--name", metavar="NAME", help="the consumer's name; required if the store has several")


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
    snapshot = require_store(options).reader.snapshot()
    if options.json:
        members = {
            "store": snapshot.where,
            "bytes": snapshot.size,
            "consumers": [
                {**asdict(progress), "owner": owner.owner, "age": _age(progress, snapshot.time)}
                for progress, owner in zip(snapshot.progress, snapshot.owners, strict=True)
            ],
        }
        print_lines([json.dumps(members)])
    else:
        print_lines(f"{name:<10}{value}".rstrip() for name, value in _fields(snapshot))


def _fields(snapshot: StoreSnapshot) -> Iterator[tuple[str, object]]:
    yield "store", quoted(snapshot.where, 1000)
    yield "size", f"{snapshot.size:,} bytes"
    for progress, owner in zip(snapshot.progress, snapshot.owners, strict=True):
        gap = done = None
        if progress.gap is not None and progress.gap_at is not None:
            gap = f"{quoted(progress.gap, 500)}, at {format_time(progress.gap_at)} UTC"
        if progress.last_progress is not None:
            done = f"{_age(progress, snapshot.time):,.1f} s ago, at {format_time(progress.last_progress)} UTC"
        yield "", ""
        yield "name", quoted(progress.name)
        yield "feed", quoted(progress.feed)
        yield "cursor", "the beginning" if progress.cursor is None else quoted(progress.cursor)
        yield "records", f"{progress.records:,}"
        yield "dead", f"{progress.dead_letters:,}"
        yield "failing", f"{progress.failing:,}"
        yield "gap", gap or "none"
        yield "progress", done or "none yet"
        yield "owner", "none" if owner.owner is None else escape_unprintable(owner.owner)
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
    store = require_store(options)
    progress = find_consumer(options, store)
    if options.list:
        saved = store.reader.history(progress.name)
        rows = (f"{format_time(one.read_at):<19}  {_display_cursor(one.cursor)}" for one in saved)
        print_lines([f"{'saved (UTC)':<19}  cursor", *rows])
        return

    async def reset(session: Session) -> tuple[Cursor | None, Cursor | None]:
        now = session.time() if is_leased(session) else time.time()
        before, target = session.cursor, _target_cursor(options, session.history, now)
        await session.reset(target, forget=options.forget, state=MOVED_STATE)
        return before, target

    before, target = store.run_with_session(progress, reset, instead="rewind()")
    print_lines(
        [
            f"before  {_display_cursor(before)}",
            f"now     {_display_cursor(target)}",
            f"then    {FORGET_EFFECTS[options.forget]}",
        ]
    )


def _target_cursor(options: argparse.Namespace, history: Sequence[SavedCursor], now: float) -> Cursor | None:
    """Return the cursor given by --to or --ago. None means the inception."""
    if options.to is None:
        saved = saved_before(history, now - options.ago)
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
    store = require_store(options)
    before = find_consumer(options, store)
    name = Rebind(before.name, feed, new_name, options.replace).target(before.feed)
    dropped = [one for one in store.reader.snapshot().progress if one.name == name != before.name]
    if dropped and not options.replace:
        raise UsageError(
            f"the store already has a consumer {quoted(name)}; choose another name, or delete its "
            "state with --replace"
        )

    store.rebind(before.name, feed=feed, new_name=name, replace=options.replace)
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
