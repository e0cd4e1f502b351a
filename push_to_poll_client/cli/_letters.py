"""How is a dead letter shown to people? Nothing in it acts on a terminal, and in a table it is short."""

from collections.abc import Iterable, Iterator

from push_to_poll_client._types import DeadLetter
from push_to_poll_client._validation import one_line
from push_to_poll_client.cli._terminal import harmless, moment, typeable

__all__ = ["sheet", "table"]

_LONGEST_KEY = 1_000
"""Characters of a key in the table: a longer one is hardly typed by anybody."""


def table(letters: Iterable[DeadLetter]) -> Iterator[str]:
    """A line for each; each is let go before the next is read."""
    none = True
    for letter in letters:
        if none:
            yield _row("last failed (UTC)", "attempts", "marked", "key", "error")
        none = False
        marked = "yes" if letter.marked else ""
        yield _row(
            moment(letter.last_failed), str(letter.attempts), marked, _key(letter.key), one_line(letter.error)
        )
    if none:
        yield "no dead letters"


def sheet(letter: DeadLetter) -> Iterator[str]:
    """All of one: its fields, the traceback, and the entry as it came."""
    yield from _fields(letter)
    if letter.traceback:
        yield ""
        yield from (f"  {harmless(line)}" for line in letter.traceback.rstrip("\n").split("\n"))
    yield ""
    yield from map(harmless, letter.raw.decode("utf-8", "backslashreplace").split("\n"))


def _fields(letter: DeadLetter) -> Iterator[str]:
    fields = {
        "key": typeable(letter.key),
        "id": typeable(letter.id),
        "error": harmless(letter.error),
        "attempts": str(letter.attempts),
        "first failed": f"{moment(letter.first_failed)} UTC",
        "last failed": f"{moment(letter.last_failed)} UTC",
        "marked": "yes, the next run tries it again" if letter.marked else "no",
        "entry": f"{len(letter.raw):,} bytes",
    }
    for name, value in fields.items():
        yield f"{name:<14}{value}"


def _row(last: str, attempts: str, marked: str, key: str, error: str) -> str:
    return f"{last:<19}  {attempts:>8}  {marked:<6}  {key:<40}  {error}"


def _key(key: str) -> str:
    return typeable(key) if len(key) <= _LONGEST_KEY else f"{typeable(key[:_LONGEST_KEY])}..."
