"""WHAT a planted bug is."""

from pathlib import Path
from typing import NamedTuple

GUARANTEES = Path(__file__).parents[1] / "guarantees"
SCHEDULE = "tests/core/test_schedule.py"


class Mutant(NamedTuple):
    """A planted bug.

    Attributes:
        guarantee: What it breaks.
        name: What it does wrong.
        file: Where, in the package.
        old: The text.
        new: What stands there instead.
        tests: Arguments for pytest: what has to go red.
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
    """Return the file of tests that specifies a guarantee."""
    (file,) = GUARANTEES.glob(f"test_g{int(guarantee[1:]):02}_*.py")
    return f"tests/guarantees/{file.name}"
