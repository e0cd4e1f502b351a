"""Entry point of `push-to-poll`: run a command and turn errors into one line and an exit code."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from push_to_poll_client._exceptions import PushToPollError
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._validation import describe, one_line
from push_to_poll_client._version import __version__
from push_to_poll_client.cli import _dead_letters, _demo, _owners, _state, _tail
from push_to_poll_client.cli._output import EscapingFormatter, Exit, UsageError, exit_code_for, flush_stdout
from push_to_poll_client.cli._parser import Commands, Parser

logger = ConsumerLog(logging.getLogger("push_to_poll_client"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code, an `Exit`.

    Args:
        arguments: Arguments after the program's name. None means `sys.argv[1:]`.
    """
    _open_closed_streams()
    parser = Parser(
        prog="push-to-poll",
        description="Consume an event feed by polling; pushes only tell the consumer when to poll.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = Commands(parser)
    for command in (_tail, _state, _owners, _dead_letters, _demo):
        command.add_to(commands)
    try:
        options = parser.parse_args(arguments)
        _log_to_stderr(options.verbose)
        return _run(options)
    finally:
        flush_stdout()


def _open_closed_streams() -> None:
    """Replace streams that the caller closed (`>&-`, `2>&-`) and for which Python has None."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  # until the process ends
    # Open stdout for reading, so that a write fails: a message that was not printed must not count as processed.
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: PTH123, SIM115


def _run(options: argparse.Namespace) -> int:
    try:
        return int(options.run(options) or Exit.DONE)
    except UsageError as error:
        return _print_error(one_line(str(error)), Exit.USAGE)
    except KeyboardInterrupt:  # before or after a command handles its signals
        return Exit.INTERRUPTED
    except PushToPollError as error:
        return _print_error(describe(error), exit_code_for(error))
    except Exception as error:  # a bug; -vv shows its traceback
        logger.debug("this is a bug", exc_info=error)
        return _print_error(f"{describe(error)}; this is a bug: please report it with the output of -vv", Exit.BUG)


def _print_error(sentence: str, code: Exit) -> int:
    print(f"push-to-poll: {sentence}", file=sys.stderr)
    return code


def _log_to_stderr(verbose: int) -> None:
    """Log only this library: logs of other libraries may contain URLs with secrets."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EscapingFormatter("%(asctime)s %(levelname)s %(message)s", tracebacks=verbose > 1))
    logger.logger.handlers[:] = [handler]
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
