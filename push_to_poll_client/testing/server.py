"""The reference server as a process of its own: `python -m push_to_poll_client.testing.server`.

When it accepts connections it prints one line on stdout, JSON with the members `url` (the feed), `push_url` (the
websocket), `sse_url` (the event stream), `changes_url` (the long poll), `base_url` (for `/webhooks`, `/publish`,
`/faults`, `/stats`, `/pushes`) and `pid`. It ends at Ctrl-C and SIGTERM.
"""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from push_to_poll_client.testing._server import ReferenceServer, serve_in_thread

__all__ = ["main"]

wait_for_ever: Callable[[], object] = threading.Event().wait


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop.

    Args:
        argv: The arguments; `None` takes those of the process.

    Returns:
        The exit code, 0.
    """
    options = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        serve_in_thread(port=options.port, backlog=options.backlog, page_size=options.page_size) as server,
    ):
        _announce(server)
        _wait(until_eof=options.until_eof)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m push_to_poll_client.testing.server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0, the default, takes a free one")
    parser.add_argument("--backlog", type=int, default=0, metavar="N", help="messages that are there already")
    parser.add_argument("--page-size", type=int, default=1000, metavar="N", help="messages on a page, 1000")
    parser.add_argument(
        "--until-eof", action="store_true", help="end with standard input, as when the parent dies"
    )
    return parser


def _announce(server: ReferenceServer) -> None:
    places = {
        "url": server.url,
        "push_url": server.push_url,
        "sse_url": server.sse_url,
        "changes_url": server.changes_url,
        "base_url": server.base_url,
        "pid": os.getpid(),
    }
    sys.stdout.write(json.dumps(places) + "\n")
    sys.stdout.flush()


def _wait(*, until_eof: bool) -> None:
    if until_eof:
        sys.stdin.read()
    else:
        wait_for_ever()


if __name__ == "__main__":
    sys.exit(main())
