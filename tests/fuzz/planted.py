"""A parser with a fault for one in four billion inputs of four bytes: only guided fuzzing finds it soon."""

from tests.fuzz.fuzzed import Fuzzed

__all__ = ["PLANTED"]


def read(data):
    depth = 0
    for place, byte in enumerate(b"\x17\x99\x4c\xe3"):
        if len(data) > place and data[place] == byte:
            depth += 1
        else:
            break
    if depth == 1:
        return "one"
    if depth == 2:
        return "two"
    if depth == 3:
        return "three"
    if depth == 4:
        raise KeyError("an error that is not declared")
    return "none"


PLANTED = Fuzzed(name="planted", modules=(), read=read, errors=(ValueError,), examples=(b"abcd",), tokens=(b"a",))
