"""The verdicts about replicas can fail: each gets a history that it must not accept."""

import contextlib

import psycopg
import pytest

from push_to_poll_client.stores._postgres.notices import digest_of
from tests.chaos.database_history import (
    Change,
    Claim,
    History,
    Recorded,
    Transfer,
    prepare_database,
    read_history,
)
from tests.chaos.replica_verdicts import (
    ahead_of_records,
    foreign_commits,
    gone_back,
    judge,
    not_exactly_once,
    recorded_twice,
    robbed,
    several_commits,
    shared_tokens,
    unfenced,
    unrecorded_messages,
)
from tests.support.postgres_server import shared_server

A, B = b"a" * 16, b"b" * 16
KEYS = ["01", "02", "03"]


def change(token, owner, commits, cursor, transaction=0, *, writer=None):
    writer = writer or f"process of {owner}"
    return Change(1, token, owner, commits, None if cursor is None else b"%02d" % cursor, transaction, writer)


def record(key, transaction):
    return Recorded(1, digest_of(key), transaction)


WELL = [
    change(0, None, 0, None, 9, writer="process of a"),
    change(1, A, 0, None, 10),
    change(1, A, 1, 1, 11),
    change(2, B, 1, 1, 12),
    change(2, B, 2, 1, 13),
    change(3, B, 2, 1, 14),  # claimed again after a commit in doubt
    change(3, B, 3, 3, 15),
]
RECORDED = [record("01", 11), record("02", 13), record("03", 15)]
DONE = [Transfer(1, 11), Transfer(2, 13), Transfer(3, 15)]


def test_a_history_without_a_fault_is_accepted():
    claims = [Claim(1, A, B, -0.1, same_instance=False), Claim(1, A, B, 0.5, same_instance=True)]
    history = History(WELL, RECORDED, claims, DONE, {})
    assert judge(history, KEYS, lease=1.0, transactional=True) == []


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(change(2, A, 4, 3), id="an older token"),
        pytest.param(change(3, B, 2, 3), id="fewer commits"),
        pytest.param(change(4, A, 2, 3), id="fewer commits with a newer token"),
        pytest.param(change(3, B, 4, 2), id="an earlier cursor"),
        pytest.param(change(4, A, 4, None), id="the inception"),
        pytest.param(change(4, A, 3, 4), id="a later cursor without a commit"),
    ],
)
def test_a_change_that_goes_back_is_reported(after):
    assert len(gone_back([*WELL, after])) == 1


def test_other_consumers_are_compared_with_themselves():
    assert gone_back([*WELL, Change(2, 1, A, 0, None, 0, "x")]) == []
    assert shared_tokens([*WELL, Change(2, 1, B, 0, None, 0, "x")]) == []


def test_a_token_of_two_owners_is_reported():
    assert shared_tokens([*WELL, change(3, None, 3, 3)]) == []
    assert shared_tokens([*WELL, change(3, A, 4, 3)]) == ["2 owners wrote with the token 3"]


def test_a_commit_of_a_process_that_made_no_claim_is_reported():
    assert foreign_commits(WELL) == []
    assert len(foreign_commits([*WELL, change(3, B, 4, 3, writer="process of a")])) == 1


def test_a_commit_that_counts_twice_is_reported():
    assert several_commits(WELL) == []
    assert len(several_commits([*WELL, change(3, B, 5, 3)])) == 1


def test_a_lease_taken_before_its_end_is_reported():
    assert len(robbed([Claim(1, A, B, 0.01, same_instance=False)], lease=1.0)) == 1
    assert len(robbed([Claim(1, A, B, 0.7, same_instance=True)], lease=1.0)) == 1


def test_a_record_written_without_a_commit_is_reported():
    assert unfenced(WELL, RECORDED) == []
    assert len(unfenced(WELL, [*RECORDED, record("04", 99), record("05", 99)])) == 1


def test_a_message_recorded_twice_is_reported():
    assert recorded_twice(RECORDED) == []
    assert len(recorded_twice([*RECORDED, record("01", 15)])) == 1


def test_a_message_without_a_record_and_a_record_without_a_message_are_reported():
    assert unrecorded_messages(KEYS, RECORDED) == []
    assert unrecorded_messages(KEYS, RECORDED[:2]) == ["03 was published and never recorded"]
    assert len(unrecorded_messages(KEYS[:2], RECORDED)) == 1


def test_a_cursor_ahead_of_the_records_is_reported():
    assert ahead_of_records(KEYS, WELL, RECORDED) == []
    late = [*RECORDED[1:], record("01", 13)]
    assert ahead_of_records(KEYS, WELL, late) == ["change 2 saved the cursor 1 before 01 was recorded"]
    assert len(ahead_of_records(KEYS, WELL, RECORDED[:2])) == 1


def test_an_effect_that_is_missing_or_done_twice_or_outside_its_transaction_is_reported():
    assert not_exactly_once(KEYS, DONE, RECORDED) == []
    assert not_exactly_once(KEYS, DONE[1:], RECORDED) == ["01 was done 0 times"]
    assert not_exactly_once(KEYS, [*DONE, Transfer(2, 14)], RECORDED) == ["02 was done 2 times"]
    assert len(not_exactly_once(KEYS, [*DONE[:2], Transfer(3, 14)], RECORDED)) == 1
    assert len(not_exactly_once(KEYS, DONE, RECORDED[:2])) == 1
    assert not_exactly_once(KEYS, [*DONE, Transfer(4, 16)], RECORDED) == ["4 was done and never published"]


@pytest.fixture
def database(request):
    """A new database of the shared server."""
    server = shared_server(request.config)
    server.execute("CREATE DATABASE history")
    yield server.conninfo.replace("/postgres", "/history")
    server.execute("DROP DATABASE history WITH (FORCE)")


def test_the_triggers_write_what_was_committed_and_nothing_else(database):
    prepare_database(database)
    with psycopg.connect(database, autocommit=True) as connection:
        with connection.transaction():
            insert = (
                "INSERT INTO push_to_poll.consumer(digest, name, feed, token, owner, at) "
                "VALUES ('d', 'n', 'f', 1, %s, 0) RETURNING id"
            )
            (consumer,) = connection.execute(insert, (A,)).fetchone()
            connection.execute(
                "INSERT INTO push_to_poll.lease VALUES (%s, now() + interval '9 s', %s, 'host', false)",
                (consumer, A),
            )

        def commit(key, cursor):
            connection.execute("INSERT INTO chaos.transfer VALUES (%s)", (int(key),))
            connection.execute("INSERT INTO push_to_poll.record VALUES (%s, 1, %s)", (consumer, digest_of(key)))
            connection.execute("UPDATE push_to_poll.consumer SET commits = commits + 1, cursor = %s", (cursor,))

        with contextlib.suppress(psycopg.errors.DivisionByZero), connection.transaction():
            commit("01", b"01")
            connection.execute("SELECT 1/0")
        with connection.transaction():
            commit("02", b"02")
        connection.execute("UPDATE push_to_poll.lease SET owner = NULL")
        connection.execute("UPDATE push_to_poll.lease SET owner = %s", (A,))
        connection.execute("UPDATE push_to_poll.lease SET owner = %s", (B,))
    history = read_history(database)
    [claimed, committed] = history.changes
    assert (claimed.token, claimed.owner, claimed.commits, claimed.cursor) == (1, A, 0, None)
    assert (committed.token, committed.owner, committed.commits, committed.cursor) == (1, A, 1, b"02")
    assert history.records == [Recorded(consumer, digest_of("02"), committed.transaction)]
    assert history.transfers == [Transfer(2, committed.transaction)]
    [claim] = history.claims
    assert (claim.loser, claim.owner, claim.same_instance, 0 < claim.remaining <= 9) == (A, B, True, True)
