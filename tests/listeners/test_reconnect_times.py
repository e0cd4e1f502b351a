"""Clients of a restarted server reconnect one after the other, as documented."""

import re
from pathlib import Path

import pytest

from push_to_poll_client.listeners._backoff import ReconnectAction, ReconnectBackoff
from tests.support.reconnect_times import AWAY, CLIENTS, arrivals, most_in, table

PAGE = (Path(__file__).parents[2] / "docs" / "push.md").read_text()


def test_the_arrival_times_in_push_md_match_the_code():
    assert f"|---|---|---|---|\n{table()}\n\n" in PAGE


def test_the_delays_in_push_md_match_the_code():
    header, row = re.search(
        r"^\| failure in a row \|(.*)\|\n.*\n\| seconds to wait \|(.*)\|$", PAGE, re.MULTILINE
    ).groups()
    shortest, longest = ReconnectBackoff(), ReconnectBackoff()
    shown = []
    for _ in header.split("|"):
        low = shortest.delay(ReconnectAction.RETRY, fraction=0.0)
        high = longest.delay(ReconnectAction.RETRY, fraction=1.0)
        shown.append(f"{low:.0f}-{high:.0f}")
    assert [cell.strip() for cell in row.split("|")] == shown


def test_clients_reconnect_evenly_within_a_second_of_an_immediate_restart():
    came = arrivals(0)
    assert len(came) == CLIENTS
    assert most_in(came, 0.1) < 2 * CLIENTS / 10
    assert came[-1] <= 1.0


@pytest.mark.parametrize("away", [away for away in AWAY if away >= 10])
def test_the_longer_a_server_is_away_the_more_its_clients_spread_their_reconnects(away):
    came = arrivals(away)
    assert most_in(came, 1.0) < CLIENTS * 3 / away
