"""What may a terminal be shown? Nothing that it would obey, whoever wrote it: such characters as JSON spells them.

Beyond the control characters of ASCII there are those of C1 (U+009B begins a sequence in some terminals), those
that turn the direction of a line (U+202E), and those that nobody sees.
"""

import json
import logging
import re
import shlex
from datetime import UTC, datetime

__all__ = ["HarmlessFormatter", "harmless", "meant", "moment", "typeable"]

_PIECE = 65_536
"""Characters that are looked at one by one together: an entry has millions, and each takes 50 times its room."""

_SPELLED = re.compile(r"(?:\\u[0-9a-f]{4}|\\[bfnrt])+")


def harmless(text: str) -> str:
    r"""The text with `\uXXXX` for what is not printable, line ends among it; a pair of them beyond U+FFFF.

    A line of JSON means the same afterwards (RFC 8259 §7): in it such characters stand in strings alone.
    """
    if text.isprintable():
        return text
    return "".join(_piece(text[begin : begin + _PIECE]) for begin in range(0, len(text), _PIECE))


def typeable(text: str) -> str:
    """A key or a cursor, harmless, and in such quotes that it can be given to a shell as it stands."""
    return shlex.quote(harmless(text))


def meant(typed: str) -> str:
    """What somebody means who types what `harmless` shows."""
    return _SPELLED.sub(lambda match: str(json.loads(f'"{match[0]}"')), typed)


def moment(seconds: float) -> str:
    """A time in seconds since the epoch, in UTC; what is none is shown as the number that it is."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g}"


def _piece(text: str) -> str:
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
