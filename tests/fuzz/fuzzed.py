"""The description of a fuzzed parser, for all harnesses. The rows are in `rows_*.py`."""

import codecs
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

__all__ = ["Fuzzed", "around", "nested", "text_of", "words"]

Sized = Callable[[int], bytes]
"""Makes a hostile input with this number of repetitions."""


@dataclass(frozen=True, kw_only=True)
class Fuzzed:
    """A parser of untrusted input.

    Attributes:
        name: Unique name.
        modules: Modules that parse the input, without the package's name. The examples must enter all of them.
        read: Parses bytes, reads every part of the result, and asserts what must hold for it.
        errors: The declared errors.
        examples: Valid inputs, the seeds of all harnesses.
        tokens: Words of the grammar.
        frame: Text before and after a repeated token, so that the parser reads it.
        hostile: Growing inputs, in addition to a repetition of each token.
        found: Inputs that once caused a fault. Every run reads them.
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
        """Parse some bytes. An error that is not declared is a fault."""
        with suppress(*self.errors):
            self.read(data)

    def __repr__(self) -> str:
        return self.name

    def families(self) -> Mapping[str, Sized]:
        """Return all hostile inputs by name."""
        before, behind = self.frame
        return {**{repr(token)[1:]: around(before, token, behind) for token in self.tokens}, **self.hostile}


def around(before: bytes, repeated: bytes, behind: bytes = b"") -> Sized:
    """Repeat some bytes between two others."""
    return lambda n: before + repeated * n + behind


def nested(opening: bytes, closing: bytes, before: bytes = b"", behind: bytes = b"") -> Sized:
    """Nest an opening and a closing part."""
    return lambda n: before + opening * n + closing * n + behind


def text_of(data: bytes) -> str:
    """Decode any bytes; bytes that are not UTF-8 become lone surrogates, as in JSON escapes."""
    return data.decode("utf-8", "surrogateescape")


def words(text: str) -> tuple[bytes, ...]:
    r"""Split words at spaces; other bytes are written with escapes: `\x20` is a space."""
    return tuple(codecs.escape_decode(word.encode())[0] for word in text.split(" ") if word)  # type: ignore[attr-defined]
