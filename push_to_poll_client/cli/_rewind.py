"""`push-to-poll rewind`: choose where in the feed a consumer goes on, while no process owns its file."""

import argparse
import time
from collections.abc import Sequence

from push_to_poll_client._options import INCEPTION, LATEST, meant_position
from push_to_poll_client._options import check_cursor as check_position
from push_to_poll_client._position import MOVED_STATE, saved_before
from push_to_poll_client._protocols import Session
from push_to_poll_client._types import MAX_CURSOR, Cursor, SavedCursor
from push_to_poll_client._validation import check_number
from push_to_poll_client.cli._output import (
    UsageError,
    escape_unprintable,
    format_time,
    print_lines,
    shell_quoted,
)
from push_to_poll_client.cli._parser import Commands
from push_to_poll_client.cli._state_file import add_state_to, find_consumer, run_with_session
from push_to_poll_client.stores._sqlite.reader import read_cursors

FORGET_EFFECTS = {
    False: "what comes again and was processed is not processed again, as long as its record is kept",
    True: "all that comes again is processed again",
}
"""The last line of the output, without and with `--forget`."""


def add_to(commands: Commands) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add(
        "rewind",
        run,
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


def run(options: argparse.Namespace) -> None:
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

    async def rewind(session: Session) -> tuple[Cursor | None, Cursor | None]:
        before, target = session.cursor, _target_cursor(options, session.history)
        await session.reset(target, forget=options.forget, state=MOVED_STATE)
        return before, target

    before, target = run_with_session(progress, options.state, rewind, instead="rewind()")
    print_lines(
        [
            f"before  {_display_cursor(before)}",
            f"now     {_display_cursor(target)}",
            f"then    {FORGET_EFFECTS[options.forget]}",
        ]
    )


def check_cursor(option: str, typed: str) -> None:
    """Check that an argument can be a cursor of a feed.

    Raises:
        ValueError: It cannot, since it is empty, too long, or not valid text, or it is a slip of a word.
    """
    if not typed or len(typed) > MAX_CURSOR:
        raise ValueError(f"{option} must be a cursor of the feed, of 1 to {MAX_CURSOR:,} characters")
    try:
        typed.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{option} must be a cursor of the feed: these bytes are no text") from None
    check_position(option, typed)


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
