"""`push-to-poll status`: show the progress of the consumers of a state file, without disturbing them."""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict

from push_to_poll_client._validation import quoted
from push_to_poll_client.cli._output import format_time, print_lines
from push_to_poll_client.cli._parser import Commands
from push_to_poll_client.stores._sqlite.reader import ConsumerProgress, StoreFile, read_store

JSON_HELP = """\
print one JSON object: file, bytes, owner (process id; null: nobody that can be seen), consumers: a list of
objects with name, feed, cursor (null: the beginning), records (of messages that are settled), dead_letters
(how many), failing (how many messages failed and are to be tried again), gap (what the feed said last that it
can no longer give; null: nothing), gap_at (when, in seconds since the epoch), fencing_token (larger for each
start), last_progress (when the newest record was made, in seconds since the epoch; null: there is none) and
age (seconds since then). Members may be added, none will change"""


def add_to(commands: Commands) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add(
        "status",
        run,
        help="say how far the consumers are that keep their state in a file",
        description="Say how far the consumers are that keep their state in a file, whether they run or not. The "
        "file is only read, and a consumer that uses it is not disturbed.",
    )
    parser.add_argument("--state", metavar="FILE", required=True, help="the file, as it was given to tail")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)


def run(options: argparse.Namespace) -> None:
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
