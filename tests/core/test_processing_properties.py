"""Properties of processing: order per key, a contiguous prefix, nothing lost, nothing twice.

They hold for all failures and all ends of a process. CHAOS_FORM=long runs many more examples.
"""

import itertools
from unittest import mock

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from push_to_poll_client.testing._virtual_time import virtual_time
from tests.support.clock import time_of_day
from tests.support.forms import form
from tests.support.lifetimes import Plan, play

ENDS = ["stop", "cancel", "crash"]

EXAMPLES = form(20, 2_000)


@st.composite
def plans(draw, concurrency, *, batches):
    """Hypothesis chooses what it should minimise; a seed chooses the rest."""
    number, lives = draw(st.integers(1, 40)), draw(st.integers(0, 4))
    troubled = draw(st.integers(0, 12))
    die = draw(st.randoms(use_true_random=True))
    names = list(named(die.choices(die.choice(["a", "ab", "abcd", "abcdefghijklmnop"]), k=number)))
    return Plan(
        names=names,
        takes=dict(zip(names, die.choices([0.0, 0.01, 0.1, 1.0, 7.0, 40.0], k=number), strict=True)),
        troubles={name: troubles(die) for name in die.sample(names, min(troubled, number))},
        feed={
            "page_size": die.choice([2, 5, 12, 100]),
            "latency": die.choice([0.0, 0.5]),
            "cursors": die.choice(["message", "page", "chain"]),
            "overlap": die.choice([0, 0, 3]),
            "read_ahead": die.choice([False, True]),
            "ends_empty": die.choice([False, True]),
        },
        consumer={
            "concurrency": concurrency,
            "commit_interval": die.choice([0.0, 0.05, 10.0]),
            "shutdown_timeout": die.choice([0.1, 5.0]),
            "waits": die.choice([0.2, 20.0]),
            "hooked": die.choice([False, True]),
            "batch_size": die.randint(1, 7) if batches else 100,
            "batch_wait": die.choice([0.0, 0.2, 5.0]) if batches else 0.0,
        },
        batches=batches,
        policy=die.choice(["stop", "skip", "dead_letter"]),
        lives=[
            (
                die.uniform(0.001, die.choice([1.0, 60.0])),
                die.choice(ENDS),
                die.randint(0, 30),
                die.random() < 0.3,
                die.choice([0, 0, 0, 1, 2]),
            )
            for _ in range(lives)
        ],
    )


def named(lanes):
    counts = dict.fromkeys(lanes, 0)
    for lane in lanes:
        counts[lane] += 1
        yield f"{lane}{counts[lane]}"


def troubles(die):
    last = die.choice([[], [], ["poison"], ["dead"], ["skip"]])
    return die.choices(["error", "later", "soon"], k=die.randint(0, 2)) + last


# The same plans are drawn for each case, so in the short form each setting is tried on one event loop.
CASES = form(
    [
        (1, "messages", "asyncio"),
        (1, "batches", "trio"),
        (4, "messages", "trio"),
        (4, "batches", "asyncio"),
        (16, "messages", "asyncio"),
        (16, "batches", "trio"),
    ],
    [*itertools.product([1, 4, 16], ["messages", "batches"], ["asyncio", "trio"])],
)


@pytest.mark.no_cover  # lines are counted where it is quick
@pytest.mark.parametrize(("concurrency", "given_as", "backend"), CASES)
def test_random_failures_and_restarts_lose_no_message_and_keep_the_order_per_key(
    concurrency, given_as, backend, monkeypatch
):
    monkeypatch.setattr("push_to_poll_client._fetching.PREFETCH_MIN_MESSAGES", 2)
    monkeypatch.setattr("push_to_poll_client._retry.logger.logger.disabled", True)

    @settings(max_examples=EXAMPLES)
    @given(plans(concurrency, batches=given_as == "batches"))
    def check(plan):
        name, options = virtual_time(backend)
        with mock.patch("push_to_poll_client._event_loop.wall_clock", time_of_day):
            anyio.run(play, plan, backend=name, backend_options=options)

    check()
