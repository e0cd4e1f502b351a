"""WHERE SOMETHING STANDS in a JSON value that anybody may have written: a path, which leads through lists."""

from collections.abc import Iterator
from typing import Any

__all__ = ["path_of", "texts_at"]

MAX_TEXT = 1024
"""Characters of a text that is taken from a push; ids, topics and names are shorter, cursors as a rule too."""


def path_of(where: object) -> tuple[str, ...]:
    """The steps of a path, as "changed.topics".

    Raises:
        TypeError: It is no `str`.
        ValueError: A step of it is empty.
    """
    if not isinstance(where, str):
        raise TypeError(f"a path is a str, not {type(where).__name__}")
    steps = tuple(where.split("."))
    if not all(steps):
        raise ValueError(f"a path is names with dots between them, not {where!r}")
    return steps


def texts_at(value: Any, steps: tuple[str, ...], *, most: int) -> list[str]:
    """The texts and whole numbers at a path; what leads nowhere, and what is anything else, is passed over.

    Args:
        value: Some JSON value. A list along the way stands for each of its items, but not one within a list.
        steps: Of the path.
        most: How many are taken.

    Returns:
        Each once, in order.
    """
    found: dict[str, None] = {}
    for text in _texts(value, steps):
        if len(found) >= most:
            break
        found[text] = None
    return list(found)


def _texts(value: Any, steps: tuple[str, ...]) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if steps and isinstance(item, dict):
            yield from _texts(item.get(steps[0]), steps[1:])
        elif not steps and isinstance(item, str | int) and not isinstance(item, bool):
            text = str(item)
            if 0 < len(text) <= MAX_TEXT:
                yield text
