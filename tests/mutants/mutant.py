"""WHAT a planted bug is."""

from typing import NamedTuple

GUARANTEES = "tests/guarantees/test_guarantees.py"
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
    return Mutant(guarantee, name, file, old, new, tests or (GUARANTEES, "-k", f"{guarantee.lower()}_"))
