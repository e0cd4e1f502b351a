"""Somebody else's text, made fit for an error, a log line or a status: short, on one line, nothing that acts."""

__all__ = ["describe", "one_line", "quoted"]

MAX_TEXT = 500
"""Characters of an error that are kept: a server may send any number."""


def quoted(text: object, limit: int = 100) -> str:
    """What somebody else wrote, as it may stand in an error: short, on one line, in ASCII, in quotes.

    Args:
        text: What `str()` makes the text of.
        limit: Characters of the text that are kept.
    """
    whole = str(text)
    return ascii(whole if len(whole) <= limit else whole[:limit] + "...")


def describe(error: BaseException | None) -> str:
    """One bounded line for status and log; nothing that a server sent can break out of it."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  # whose __str__ is broken is described all the same
        text = f"{type(error).__name__}, whose text cannot be read"
    return one_line(text)


def one_line(text: str) -> str:
    """A sentence with somebody else's text in it, bounded and without anything that acts."""
    return "".join(char if char.isprintable() else "�" for char in text[:MAX_TEXT])
