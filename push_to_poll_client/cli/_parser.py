"""Parser of the command line. Its errors do not show values, because a value may be a secret."""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from push_to_poll_client._validation import one_line
from push_to_poll_client.cli._output import EXIT_CODES, Exit

# Errors of argparse that repeat a value, which would end up in the log of a cron job.
_ECHOED_VALUE = re.compile(r"(invalid choice|invalid \w+ value|ignored explicit argument):? .*", re.DOTALL)
_OPTION = re.compile(r"(--?[a-z][a-z-]{0,20})(=.*)?", re.DOTALL)


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps paragraphs, and does not wrap tables."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Reports an error as one sentence that names `--help`."""

    def __init__(self, *, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=EXIT_CODES,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,  # else a new option could make an abbreviation ambiguous
        )

    def error(self, message: str) -> NoReturn:
        without_value = one_line(_ECHOED_VALUE.sub(r"\1", message))
        self.exit(Exit.USAGE, f"{self.prog}: {without_value}; see {self.prog} --help\n")

    def parse_args(  # type: ignore[override]  # without its overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse the arguments; an error about unknown options names them without values."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            names = [match[1] for match in map(_OPTION.fullmatch, unknown) if match]
            rest = len(unknown) - len(names)
            more = f" and {rest} more" if names and rest else ""
            options.parser.error(f"unrecognized arguments: {', '.join(names) or rest}{more}")
        return options


class Commands:
    """The commands, or the actions of a command, of `parser`."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    def add(
        self, name: str, run: Callable[[argparse.Namespace], int | None] | None, *, help: str, description: str
    ) -> argparse.ArgumentParser:
        """Add a command and return its parser. `run` is None if the command has actions."""
        parser = self._parsers.add_parser(name, help=help, description=description)
        parser.set_defaults(run=run, parser=parser, verbose=0)
        return parser
