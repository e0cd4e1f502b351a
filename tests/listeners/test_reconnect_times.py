"""A restarted server meets its clients one after the other, as the page says."""

from pathlib import Path

import pytest

from tests.support.reconnect_times import AWAY, CLIENTS, arrivals, curve

PAGE = (Path(__file__).parents[2] / "docs" / "push.md").read_text()


def most_in(moments, seconds):
    """The most of them in any window of so many seconds."""
    return max(sum(1 for moment in moments if at <= moment < at + seconds) for at in moments)


def test_the_curves_in_push_md_match_the_code():
    assert f"```text\n{curve()}\n```" in PAGE


def test_clients_reconnect_evenly_within_a_second_of_an_immediate_restart():
    came = arrivals(0)
    assert len(came) == CLIENTS
    assert most_in(came, 0.1) < 2 * CLIENTS / 10
    assert came[-1] <= 1.0


@pytest.mark.parametrize("away", [away for away in AWAY if away >= 10])
def test_the_longer_a_server_is_away_the_more_its_clients_spread_their_reconnects(away):
    came = arrivals(away)
    assert most_in(came, 1.0) < CLIENTS * 3 / away
