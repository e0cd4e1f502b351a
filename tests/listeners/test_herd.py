"""A restarted server meets its clients one after the other, as the page says."""

from pathlib import Path

import pytest

from tests.support.herd import AWAY, CLIENTS, arrivals, curve

PAGE = (Path(__file__).parents[2] / "docs" / "push.md").read_text()


def most_in(moments, seconds):
    """The most of them in any window of so many seconds."""
    return max(sum(1 for moment in moments if at <= moment < at + seconds) for at in moments)


def test_the_curve_of_the_page_is_that_of_the_code():
    assert f"```text\n{curve()}\n```" in PAGE


def test_after_a_restart_at_once_they_come_evenly_over_a_second():
    came = arrivals(0)
    assert len(came) == CLIENTS
    assert most_in(came, 0.1) < 2 * CLIENTS / 10
    assert came[-1] <= 1.0


@pytest.mark.parametrize("away", [away for away in AWAY if away >= 10])
def test_the_longer_it_was_away_the_more_they_are_spread(away):
    came = arrivals(away)
    assert most_in(came, 1.0) < CLIENTS * 3 / away
