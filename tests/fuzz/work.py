"""Count the work of a function in steps and bytes, the same on every machine.

Counted are:
- each executed line of Python in the package and in the modules that parse for it;
- for each call of a method of a text or of bytes (`split`, `strip`, `decode`, …) the length of that text;
- for each such call by `html.parser` on the page, the searched part: from the start of the search to the match,
  or to its end;
- for each pattern that the package has compiled, the searched part: from the start of the search to the end of
  the match, or to the end of the text if there is none (`test_patterns.py` checks that a pattern takes a bounded
  number of steps for each character);
- for each decoder of the package the length of its input;
- for each text and list in a variable of a function its length, once: repeated copies are the usual cause of
  quadratic parsers.
"""

import html.parser
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["counting_calls", "work_of"]

PACKAGE = "push_to_poll_client"
READERS = (PACKAGE, "email", "html", "httpx", "ipaddress", "json", "shlex", "urllib", "websockets", "xml")
_TEXTS = (str, bytes, bytearray)
_SIZED = (*_TEXTS, list, tuple, dict)
_LOOKS_AT_NOTHING = frozenset(
    {"append", "clear", "endswith", "extend", "format", "startswith", "__len__", "__getitem__"}  # no text is read
)

_Pattern = type(re.compile(""))


class _Counter:
    def __init__(self) -> None:
        self.work = 0
        self.kept: dict[int, Any] = {}

    def call(self, frame: Any, _event: str, _argument: Any) -> Any:
        self.work += 1
        module = frame.f_globals.get("__name__", "")
        if module.startswith(PACKAGE):
            return self.line
        return self.step if module.startswith(READERS) else None

    def step(self, _frame: Any, _event: str, _argument: Any) -> Any:
        self.work += 1
        return self.step

    def line(self, frame: Any, _event: str, _argument: Any) -> Any:
        self.work += 1
        for value in frame.f_locals.values():
            if isinstance(value, _SIZED) and id(value) not in self.kept:
                self.kept[id(value)] = value  # keeps the object, so that no other object gets its id
                self.work += len(value)
        return self.line

    def profile(self, _frame: Any, event: str, function: Any) -> None:
        if event == "c_call":
            text = getattr(function, "__self__", None)
            if isinstance(text, _Page) and function.__name__ in _PAGE_COUNTS:
                return
            if isinstance(text, _TEXTS) and function.__name__ not in _LOOKS_AT_NOTHING:
                self.work += len(text)


_counter = _Counter()


def work_of(function: Callable[[], Any]) -> int:
    """Return the work of a function."""
    global _counter  # noqa: PLW0603  # what stands in for patterns counts into it
    _counter = counter = _Counter()
    tracing, profiling = sys.gettrace(), sys.getprofile()
    sys.setprofile(counter.profile)
    sys.settrace(counter.call)
    try:
        function()
    finally:
        sys.settrace(tracing)
        sys.setprofile(profiling)
    return counter.work


_PAGE_COUNTS = frozenset({"count", "find", "rfind", "rindex"})


class _Page(str):
    """Page for `html.parser` that counts its searches for the next tag."""

    __slots__ = ()

    def count(self, part: str, start: int = 0, end: int = sys.maxsize) -> int:
        _counter.work += min(end, len(self)) - start
        return super().count(part, start, end)

    def find(self, part: str, start: int = 0, end: int = sys.maxsize) -> int:
        found = super().find(part, start, end)
        _counter.work += (min(end, len(self)) if found < 0 else found + len(part)) - start
        return found

    def rfind(self, part: str, start: int = 0, end: int = sys.maxsize) -> int:
        _counter.work += min(end, len(self)) - start
        return super().rfind(part, start, end)

    def rindex(self, part: str, start: int = 0, end: int = sys.maxsize) -> int:
        _counter.work += min(end, len(self)) - start
        return super().rindex(part, start, end)


def _page(parser: Any) -> _Page:
    return parser.__dict__["rawdata"]


def _set_page(parser: Any, text: str) -> None:
    parser.__dict__["rawdata"] = _Page(text)


class _Counted:
    """Stand-in for a pattern, which counts its work."""

    def __init__(self, pattern: Any) -> None:
        self._pattern = pattern
        self.pattern, self.flags = pattern.pattern, pattern.flags

    def match(self, text: Any, at: int = 0) -> Any:
        return self._looked(text, at, self._pattern.match(text, at))

    def fullmatch(self, text: Any) -> Any:
        return self._looked(text, 0, self._pattern.fullmatch(text))

    def search(self, text: Any, at: int = 0) -> Any:
        return self._looked(text, at, self._pattern.search(text, at))

    def findall(self, text: Any) -> Any:
        _counter.work += len(text)
        return self._pattern.findall(text)

    def finditer(self, text: Any, at: int = 0) -> Any:
        for found in self._pattern.finditer(text, at):
            yield self._looked(text, found.start(), found)

    def sub(self, by: Any, text: Any) -> Any:
        _counter.work += len(text)
        return self._pattern.sub(by, text)

    @staticmethod
    def _looked(text: Any, at: int, found: Any) -> Any:
        _counter.work += (len(text) if found is None else found.end()) - at
        return found


def _counted_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a decoder to count its input."""

    def call(text: Any, *more: Any) -> Any:
        _counter.work += len(bytes(text) if not isinstance(text, str) else text)
        return function(text, *more)

    return call


def _stand_in(value: Any) -> Any:
    """Return the counting stand-in of a value, or None if it needs none."""
    if isinstance(value, _Pattern):
        return _Counted(value)
    bound = getattr(value, "__self__", None)
    if isinstance(bound, _Pattern):
        return getattr(_Counted(bound), value.__name__)
    if type(bound).__name__ == "Decoder":
        return _counted_call(value)
    return None


@contextmanager
def counting_calls() -> Iterator[None]:
    """Let patterns and decoders of the package count their work within the block."""
    modules = [module for name, module in sys.modules.items() if name.startswith(PACKAGE)]
    found = [(module, name, value) for module in modules for name, value in vars(module).items()]
    replaced = [(module, name, value, other) for module, name, value in found if (other := _stand_in(value))]
    for module, name, _, other in replaced:
        setattr(module, name, other)
    html.parser.HTMLParser.rawdata = property(_page, _set_page)
    try:
        yield
    finally:
        del html.parser.HTMLParser.rawdata
        for module, name, value, _ in replaced:
            setattr(module, name, value)
