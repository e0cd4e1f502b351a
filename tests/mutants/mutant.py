"""A planted bug and its tests."""

from pathlib import Path
from typing import NamedTuple

GUARANTEES = Path(__file__).parents[1] / "guarantees"
SCHEDULE = "tests/core/test_schedule.py"


class Mutant(NamedTuple):
    """A planted bug.

    Attributes:
        guarantee: The guarantee that it breaks.
        name: Its effect.
        file: The file, in the package.
        old: The original text.
        new: The text with the bug.
        tests: Arguments for pytest: the tests that must fail.
    """

    guarantee: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def of(guarantee, name, file, old, new, *tests):
    return Mutant(guarantee, name, file, old, new, tests or (specification(guarantee),))


def specification(guarantee):
    """Return the test file that specifies a guarantee."""
    (file,) = GUARANTEES.glob(f"test_g{int(guarantee[1:]):02}_*.py")
    return f"tests/guarantees/{file.name}"
