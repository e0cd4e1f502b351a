"""`push-to-poll rebind`: bind a consumer's name to another feed, or rename it, while no process owns its file."""

import argparse
import re
from collections.abc import Iterator

from push_to_poll_client._http.origins import identity, parse_http_url
from push_to_poll_client._validation import MAX_IDENTITY
from push_to_poll_client.cli._output import UsageError, print_lines, shell_quoted
from push_to_poll_client.cli._parser import Commands
from push_to_poll_client.cli._state_file import add_state_to, find_consumer, run_with_store
from push_to_poll_client.stores._rebind import Rebind
from push_to_poll_client.stores._sqlite.reader import ConsumerProgress, read_store

THEN = {
    False: "it goes on from its cursor, with its records and dead letters",
    True: "it goes on from its cursor, which must mean the same there; if it does not: push-to-poll rewind",
}
"""The last line of the output, for the same feed and for another one."""


def add_to(commands: Commands) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add(
        "rebind",
        run,
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


def run(options: argparse.Namespace) -> None:
    """Rebind the name, and print what it was and what it is.

    Raises:
        StoreError: The file cannot be used.
        UsageError: An argument has no meaning, or the new name exists already.
    """
    if options.feed is None and options.new_name is None:
        raise UsageError("give --feed, --new-name or both")
    feed = None if options.feed is None else _identity(_check_text("--feed", options.feed))
    new_name = None if options.new_name is None else _check_text("--new-name", options.new_name)
    progress = find_consumer(options)
    asked = Rebind(progress.name, feed, new_name, options.replace)
    target = asked.target(progress.feed)
    others = [one for one in read_store(options.state).progress if one.name == target != progress.name]
    if others and not options.replace:
        raise UsageError(
            "the file has that name already; give another one, or drop all that it has with --replace"
        )

    run_with_store(
        options.state,
        lambda store: store.rebind(progress.name, feed=feed, new_name=target, replace=options.replace),
    )
    print_lines(_lines(progress, target, progress.feed if feed is None else feed, others))


_TEXTS = {"--feed": "the feed's URL or identity", "--new-name": "a name"}


def _check_text(option: str, typed: str) -> str:
    try:
        typed.encode()
    except UnicodeEncodeError:  # bytes that are no text
        typed = ""
    if not 0 < len(typed) <= MAX_IDENTITY:
        raise UsageError(f"{option} must be {_TEXTS[option]}, of 1 to {MAX_IDENTITY:,} characters")
    return typed


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


def _lines(before: ConsumerProgress, name: str, feed: str, dropped: list[ConsumerProgress]) -> Iterator[str]:
    cursor = "inception" if before.cursor is None else shell_quoted(before.cursor)
    yield f"name    {shell_quoted(before.name)}"
    yield f"now     {shell_quoted(name)}"
    yield f"feed    {shell_quoted(before.feed)}"
    yield f"now     {shell_quoted(feed)}"
    yield f"cursor  {cursor}"
    for one in dropped:
        yield f"dropped {one.records:,} records and {one.dead_letters:,} dead letters that this name had"
    yield f"then    {THEN[feed != before.feed]}"
