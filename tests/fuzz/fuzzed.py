"""A fuzzed parser, as every harness here sees it. The rows are in `rows_*.py`."""

import codecs
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

__all__ = ["Fuzzed", "around", "nested", "text_of", "words"]

Sized = Callable[[int], bytes]
"""Makes a hostile input of so many repetitions."""


@dataclass(frozen=True, kw_only=True)
class Fuzzed:
    """A parser of what others wrote.

    Attributes:
        name: What it is called.
        modules: The modules that it goes through, without the package's name: its examples enter all of them.
        read: Gives it some bytes, looks at all that comes of it, and asserts what must be true of that.
        errors: What it is declared to raise.
        examples: Valid inputs, the seeds of all harnesses.
        tokens: Words of its grammar.
        frame: What stands before and behind a repeated token, so that the parser looks at it.
        hostile: Inputs that grow, beyond a repetition of each token.
        found: Inputs by which a fault was found. They are read in every run.
    """

    name: str
    modules: tuple[str, ...]
    read: Callable[[bytes], object]
    errors: tuple[type[BaseException], ...] = ()
    examples: tuple[bytes, ...]
    tokens: tuple[bytes, ...]
    frame: tuple[bytes, bytes] = (b"", b"")
    hostile: Mapping[str, Sized] = field(default_factory=dict)
    found: tuple[bytes, ...] = ()

    def __call__(self, data: bytes) -> None:
        """Read some bytes. What it raises is a fault."""
        with suppress(*self.errors):
            self.read(data)

    def __repr__(self) -> str:
        return self.name

    def families(self) -> Mapping[str, Sized]:
        """All hostile inputs, by what they are called."""
        before, behind = self.frame
        return {**{repr(token)[1:]: around(before, token, behind) for token in self.tokens}, **self.hostile}


def around(before: bytes, repeated: bytes, behind: bytes = b"") -> Sized:
    """Something repeated, in a frame."""
    return lambda n: before + repeated * n + behind


def nested(opening: bytes, closing: bytes, before: bytes = b"", behind: bytes = b"") -> Sized:
    """Something in itself."""
    return lambda n: before + opening * n + closing * n + behind


def text_of(data: bytes) -> str:
    """Any bytes as a text; those that are no UTF-8 become halves of surrogate pairs, as JSON can spell them."""
    return data.decode("utf-8", "surrogateescape")


def words(text: str) -> tuple[bytes, ...]:
    r"""Words with spaces between them; what they cannot show is written as in a literal: `\x20` is a space."""
    return tuple(codecs.escape_decode(word.encode())[0] for word in text.split(" ") if word)  # type: ignore[attr-defined]
