"""What may a terminal be shown? Nothing that it would obey, whoever wrote it: such characters as JSON spells them.

Beyond the control characters of ASCII there are those of C1 (U+009B begins a sequence in some terminals), those
that turn the direction of a line (U+202E), and those that nobody sees.
"""

import json
import logging

__all__ = ["HarmlessFormatter", "harmless"]


def harmless(text: str) -> str:
    r"""The text with `\uXXXX` for what is not printable, line ends among it; a pair of them beyond U+FFFF.

    A line of JSON means the same afterwards (RFC 8259 §7): in it such characters stand in strings alone.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


class HarmlessFormatter(logging.Formatter):
    """Makes one line of a record. A traceback follows it, indented, so that no line of it looks like a record."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The line."""
        return harmless(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback if there is one."""
        return "\n  ".join(map(harmless, super().format(record).split("\n")))
