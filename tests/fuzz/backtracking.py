"""Count the steps of a regular expression on a text, with a slow copy of the engine of `re`.

`re` does not report its steps, and a clock measures only this machine. This code walks the parsed pattern by the
same rules: alternatives in order, greedy first, backtracking when the rest fails. Possessive repetitions and
atomic groups do not backtrack. `test_patterns.py` compares the results with `re`.
"""

import re
from collections.abc import Callable, Sequence
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

__all__ = ["Steps", "TooManySteps", "alphabet"]

Go = Callable[[int], int | None]
"""The rest of a match: gets its start, and returns the end of the whole match, or None if it fails."""

_SINGLE = (op.LITERAL, op.NOT_LITERAL, op.ANY, op.ANY_ALL, op.IN)
_SPACE, _DIGIT, _WORD = re.compile(r"\s"), re.compile(r"\d"), re.compile(r"\w")


class TooManySteps(Exception):
    """The pattern needs more steps than the limit."""


class Steps:
    """A pattern that counts its steps.

    Args:
        pattern: The compiled pattern.
        most: Maximum number of steps of a call.

    Attributes:
        count: Characters read and alternatives tried so far.
    """

    def __init__(self, pattern: re.Pattern[Any], most: int = 1_000_000) -> None:
        self.count = 0
        self._most = most
        self._flags = pattern.flags
        self._bytes = isinstance(pattern.pattern, bytes)
        self._nodes = list(
            _parser.parse(
                pattern.pattern, pattern.flags & ~re.UNICODE & ~re.ASCII if self._bytes else pattern.flags
            )
        )
        self._text: Sequence[int] = ()

    def match(self, text: str | bytes, at: int = 0, *, whole: bool = False) -> int | None:
        """Return the end of a match at this position, or None. With `whole`, the match must end with the text."""
        self._text = text if isinstance(text, bytes) else [ord(char) for char in text]
        end = len(text)
        return self._seq(self._nodes, at, self._flags, lambda to: None if whole and to != end else to)

    def search(self, text: str | bytes, at: int = 0) -> tuple[int, int] | None:
        """Return the first match from this position on."""
        for start in range(at, len(text) + 1):
            end = self.match(text, start)
            if end is not None:
                return start, end
        return None

    def all(self, text: str | bytes) -> list[tuple[int, int]]:
        """Return all matches, like `finditer`."""
        found, at, empty_at = [], 0, -1
        while at <= len(text):
            one = self._next(text, at, empty_at)
            if one is None:
                break
            found.append(one)
            at, empty_at = one[1], one[1] if one[0] == one[1] else -1
        return found

    def _next(self, text: str | bytes, at: int, empty_at: int) -> tuple[int, int] | None:
        """Find the next match. `re` does not return two empty matches at the same position."""
        self._text = text if isinstance(text, bytes) else [ord(char) for char in text]
        for start in range(at, len(text) + 1):
            end = self._seq(self._nodes, start, self._flags, lambda to: None if to == empty_at == start else to)  # noqa: B023
            if end is not None:
                return start, end
        return None

    def _step(self) -> None:
        self.count += 1
        if self.count > self._most:
            raise TooManySteps

    def _seq(self, nodes: Sequence[Any], at: int, flags: int, go: Go, first: int = 0) -> int | None:
        if first == len(nodes):
            return go(at)
        return self._node(nodes[first], at, flags, lambda to: self._seq(nodes, to, flags, go, first + 1))

    def _node(self, node: Any, at: int, flags: int, go: Go) -> int | None:  # noqa: PLR0911
        self._step()
        kind, what = node
        if kind in _SINGLE:
            return go(at + 1) if self._is(node, at, flags) else None
        if kind is op.AT:
            return go(at) if self._holds(what, at, flags) else None
        if kind is op.SUBPATTERN:
            _, added, removed, nodes = what
            return self._seq(nodes, at, (flags | added) & ~removed, go)
        if kind is op.BRANCH:
            ways = (self._seq(nodes, at, flags, go) for nodes in what[1])
            return next((end for end in ways if end is not None), None)
        if kind is op.ATOMIC_GROUP:
            end = self._seq(what, at, flags, _as_it_is)
            return None if end is None else go(end)
        if kind in (op.ASSERT, op.ASSERT_NOT):
            ahead, nodes = what
            start = at if ahead == 1 else at - nodes.getwidth()[0]
            there = start >= 0 and self._seq(nodes, start, flags, _as_it_is) is not None
            return go(at) if there == (kind is op.ASSERT) else None
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            return self._repeat(kind, what, at, flags, go)
        raise NotImplementedError(kind)

    def _repeat(self, kind: Any, what: Any, at: int, flags: int, go: Go) -> int | None:
        least, most, nodes = what
        if kind is op.POSSESSIVE_REPEAT:
            end = self._possessive(least, most, nodes, at, flags)
            return None if end is None else go(end)
        if kind is op.MAX_REPEAT and len(nodes) == 1 and nodes[0][0] in _SINGLE:
            return self._greedy_characters(least, most, nodes[0], at, flags, go)

        def again(to: int, number: int) -> int | None:
            more = number < most and not (number > least and to == at)
            further = lambda there: None if there == to and number >= least else again(there, number + 1)  # noqa: E731
            ways = [lambda: self._seq(nodes, to, flags, further) if more else None]
            ways += [lambda: go(to) if number >= least else None]
            for way in ways if kind is op.MAX_REPEAT else reversed(ways):
                self._step()
                end = way()
                if end is not None:
                    return end
            return None

        return again(at, 0)

    def _possessive(self, least: int, most: int, nodes: Any, at: int, flags: int) -> int | None:
        number = 0
        while number < most:
            end = self._seq(nodes, at, flags, _as_it_is)
            if end is None or (end == at and number >= least):
                break
            at, number = end, number + 1
        return at if number >= least else None

    def _greedy_characters(  # noqa: PLR0917
        self, least: int, most: int, node: Any, at: int, flags: int, go: Go
    ) -> int | None:
        end = at
        while end - at < most and self._is(node, end, flags):
            self._step()
            end += 1
        for to in range(end, at + least - 1, -1):
            self._step()
            found = go(to)
            if found is not None:
                return found
        return None

    def _is(self, node: Any, at: int, flags: int) -> bool:
        """Return True if the node matches this character."""
        if at >= len(self._text):
            return False
        char = self._text[at]
        same = {char}
        if flags & re.IGNORECASE:
            same |= {ord(one) for one in (chr(char).lower(), chr(char).upper()) if len(one) == 1}
        return any(self._is_exactly(node, one, flags) for one in same)

    def _is_exactly(self, node: Any, char: int, flags: int) -> bool:
        kind, what = node
        if kind is op.LITERAL:
            return bool(char == what)
        if kind is op.NOT_LITERAL:
            return bool(char != what)
        if kind is op.ANY:
            return bool(flags & re.DOTALL) or char != ord("\n")
        negated = bool(what) and what[0][0] is op.NEGATE
        return negated != any(_is_in(one, char, ascii_only=self._bytes or bool(flags & re.ASCII)) for one in what)

    def _holds(self, what: Any, at: int, flags: int) -> bool:
        text, end = self._text, len(self._text)
        if what in (op.AT_BOUNDARY, op.AT_NON_BOUNDARY):
            before, behind = (0 <= place < end and bool(_WORD.match(chr(text[place]))) for place in (at - 1, at))
            return (before != behind) == (what is op.AT_BOUNDARY)
        if what is op.AT_BEGINNING:
            return at == 0 or (bool(flags & re.MULTILINE) and text[at - 1] == ord("\n"))
        if what is op.AT_BEGINNING_STRING:
            return at == 0
        if what is op.AT_END:
            newline = at < end and text[at] == ord("\n")
            return at == end or (newline and (at == end - 1 or bool(flags & re.MULTILINE)))
        if what is op.AT_END_STRING:
            return at == end
        raise NotImplementedError(what)


def _as_it_is(to: int) -> int:
    return to


def _is_in(member: Any, char: int, *, ascii_only: bool) -> bool:
    kind, what = member
    if kind is op.LITERAL:
        return bool(char == what)
    if kind is op.RANGE:
        return bool(what[0] <= char <= what[1])
    if kind is op.CATEGORY:
        name = str(what)
        pattern = _SPACE if name.endswith("SPACE") else _DIGIT if name.endswith("DIGIT") else _WORD
        found = bool(pattern.match(chr(char))) and not (ascii_only and char > 127)
        return found != ("_NOT_" in name)
    return False  # NEGATE


def alphabet(pattern: re.Pattern[Any]) -> list[int]:
    """Return the characters that the pattern names or excludes."""
    found: dict[int, None] = {}

    def look(part: Any) -> None:
        if isinstance(part, tuple) and len(part) == 2 and part[0] in (op.LITERAL, op.NOT_LITERAL):
            found.setdefault(part[1])
        elif isinstance(part, tuple) and len(part) == 2 and part[0] is op.RANGE:
            found.setdefault(part[1][0])
        elif isinstance(part, tuple) and len(part) == 2 and part[0] is op.CATEGORY:
            found.setdefault(ord({"SPACE": " ", "DIGIT": "0", "_WORD": "a"}[str(part[1])[-5:]]))
        elif isinstance(part, tuple | list | _parser.SubPattern):
            for one in part:
                look(one)

    look(
        _parser.parse(
            pattern.pattern,
            pattern.flags & ~re.UNICODE & ~re.ASCII if isinstance(pattern.pattern, bytes) else pattern.flags,
        )
    )
    return list(found)
