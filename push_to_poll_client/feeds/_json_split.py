"""Where one part of a JSON text ends and the next begins, for texts that a parser refuses as a whole.

A parser fails a whole page because of one bad byte or one value nested too deep. What is here reads only
strings, brackets and commas, without recursion and in time linear in the text, and takes the rest on trust.
"""

import re
from collections.abc import Iterator

__all__ = ["split"]

# A string that is not closed reaches to the end, so that no byte is looked at twice. Hence possessive, too.
_STRING = rb'"(?:[^"\\]++|\\.)*+"?'
_AT_TOP = re.compile(_STRING + rb"|[\[{]|[\]}]|,", re.DOTALL)
_DEEPER = re.compile(_STRING + rb"|[\[{]++|[\]}]", re.DOTALL)
_SPACE = b" \t\r\n"


def split(text: bytes, brackets: bytes) -> Iterator[bytes]:
    """The elements of a JSON array, or the members of an object, as they stand in the text.

    Args:
        text: The array or object; space around it is allowed.
        brackets: `b"[]"` or `b"{}"`, what the text has to stand in.

    Yields:
        The bytes between the commas, without space around them. Whether they are JSON is not looked at.

    Raises:
        ValueError: The text does not stand in these brackets, is closed too early or too late, or has nothing
            between two commas. Found out on the way: what was yielded before is worth nothing.
    """
    text = text.strip(_SPACE)
    if not (text.startswith(brackets[:1]) and text.endswith(brackets[1:])):
        raise ValueError(f"it does not stand in {brackets.decode()}")
    start = 0
    for stop in _boundaries(text):
        part = text[start + 1 : stop].strip(_SPACE)
        if part:
            yield part
        elif text[1:-1].strip(_SPACE):
            raise ValueError("nothing stands between two commas")
        start = stop
    if start != len(text) - 1:
        raise ValueError("something stands after its end")


def _boundaries(text: bytes) -> Iterator[int]:
    """Where the commas of the outermost array or object are, and last its end."""
    depth, at = 1, 1
    while token := (_AT_TOP if depth == 1 else _DEEPER).search(text, at):
        at = token.end()
        match token[0][:1]:
            case b"[" | b"{":
                depth += at - token.start()
            case b"]" | b"}":
                depth -= 1
            case b",":
                yield token.start()
        if not depth:
            yield token.start()
            return
    raise ValueError("it ends in the middle")
