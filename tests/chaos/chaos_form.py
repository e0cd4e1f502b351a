"""Short or long, and from which seed.

`make test` runs the short form, `make chaos` (CHAOS_FORM=long) the long one. CHAOS_SEED repeats the choices of a
run; processes and sockets have a timing of their own, so not every failure comes back with its seed.
"""

import os
import random

LONG = os.environ.get("CHAOS_FORM", "short") == "long"
SEED = int(os.environ["CHAOS_SEED"])
"""`tests/conftest.py` draws it, for all workers of a run, where nobody chose it."""


def form(short, long):
    """The one that was chosen."""
    return long if LONG else short


def chance(name):
    """The random numbers of a test: its name and the seed decide them."""
    return random.Random(f"{name} {SEED}")  # noqa: S311
