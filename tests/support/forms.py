"""The two forms of the tests: `make test` runs the short one, `make chaos` (CHAOS_FORM=long) the long one.

Everything random is drawn from `SEED`. The short form has a fixed seed, so two runs do the same; `make chaos`
draws a new one each time. The first and the last lines of a run show the seed, and CHAOS_SEED=… repeats it.
Processes and real sockets have their own timing, so a seed does not repeat every failure.
"""

import os
import random

LONG = os.environ.get("CHAOS_FORM", "short") == "long"

# Written back to the environment: the workers of a run, and the processes that tests start, use the same seed.
os.environ.setdefault("CHAOS_SEED", str(random.SystemRandom().randrange(10**9) if LONG else 14))
SEED = int(os.environ["CHAOS_SEED"])

GUARD = 60.0
"""Seconds after which a test in real time fails instead of hanging.

A wait usually takes milliseconds, on a busy machine many seconds. No test uses it to assert that something is
fast: tests count instead, or use virtual time.
"""


def form(short, long):
    """Return the value for the current form."""
    return long if LONG else short


def chance(name):
    """Return random numbers that depend only on the seed and a test's name."""
    return random.Random(f"{name} {SEED}")  # noqa: S311  # not for secrets
