"""Parser of the command line. Its errors never show a value, which may be a secret."""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from push_to_poll_client._validation import one_line
from push_to_poll_client.cli._output import EXIT_CODES, Exit

# Texts of argparse that repeat a value, which would end up in the log of a cron job.
_ECHOED_VALUE = re.compile(r"(invalid choice|invalid \w+ value|ignored explicit argument):? .*", re.DOTALL)
_OPTION = re.compile(r"(--?[a-z][a-z-]{0,20})(=.*)?", re.DOTALL)


class _HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs, and leaves tables as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Reports an error in one sentence and names the help."""

    def __init__(self, *, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=EXIT_CODES,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,  # so that no later option makes a typed one ambiguous
        )

    def error(self, message: str) -> NoReturn:
        """Exit with `Exit.USAGE`."""
        without_value = one_line(_ECHOED_VALUE.sub(r"\1", message))
        self.exit(Exit.USAGE, f"{self.prog}: {without_value}; see {self.prog} --help\n")

    def parse_args(  # type: ignore[override]  # without its overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse as argparse does, but name unknown options without their values."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            names = [match[1] for match in map(_OPTION.fullmatch, unknown) if match]
            rest = len(unknown) - len(names)
            more = f" and {rest} more" if names and rest else ""
            options.parser.error(f"unrecognized arguments: {', '.join(names) or rest}{more}")
        return options


class Commands:
    """The commands of a parser.

    Args:
        parser: The parser that gets them.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    def add(
        self, name: str, run: Callable[[argparse.Namespace], int | None] | None, *, help: str, description: str
    ) -> argparse.ArgumentParser:
        """Add a command.

        Args:
            name: The word to type.
            run: Called with the parsed arguments; returns the exit code, or None when it is done. None for a
                command with commands of its own.
            help: The line in the list of commands.
            description: The head of the command's own help.
        """
        parser = self._parsers.add_parser(name, help=help, description=description)
        parser.set_defaults(run=run, parser=parser, verbose=0)
        return parser
