"""The verdicts can fail: each gets a journal that it must not accept."""

import math

import pytest

from tests.chaos.journals import (
    Asked,
    ConsumerJournal,
    Dialled,
    Fetch,
    Handled,
    Journal,
    Said,
    ServerJournal,
    until,
)
from tests.chaos.verdicts import (
    beyond_g2,
    beyond_g3,
    beyond_g7,
    beyond_g7_together,
    beyond_reconnect_policy,
    disordered,
    impatient,
    lost,
    poll_starts,
    redone,
    unrecorded,
)


def life(number, *ids, since=0.0, takes=0.01):
    """Lines of a life: the handler is entered with each message, and takes its time."""
    entered = [since + takes * place for place in range(len(ids))]
    return [Handled(number, name, at, at + takes) for name, at in zip(ids, entered, strict=True)]


def fetched(*fetches, client="c"):
    """Fetches as `at, after, next`; each takes 0.1 s."""
    return [Fetch(client, at, after, at + 0.1, following) for at, after, following in fetches]


def polls(*times, client="c"):
    """Polls of one fetch each, which takes no time."""
    return [Fetch(client, at, "d", at) for at in times]


def test_lost_reports_unhandled_messages_and_messages_that_were_never_published():
    assert lost("abc", life(1, "a", "b", "c")) == []
    assert lost("abc", [*life(1, "a", "c", "x"), Handled(1, "b", 9.0)]) == [
        "b was published and never handled",
        "x was handled and never published",
    ]


def test_disordered_reports_a_first_occurrence_that_is_out_of_order():
    assert disordered([*life(1, "a", "b"), *life(2, "a", "b", "c")]) == []
    assert disordered([*life(1, "a", "c"), *life(2, "b")]) == ["c was handled before b"]


def test_redone_counts_repeated_messages_for_the_run_that_handled_them_first():
    assert redone([*life(1, "a", "b", "c"), *life(2, "b", "c", "d"), *life(3, "c", "d")]) == {1: 2, 2: 2, 3: 0}


@pytest.mark.parametrize(
    "handled",
    [
        pytest.param([*life(1, "a", "b"), *life(2, "c")], id="nothing was done again"),
        pytest.param(
            [*life(1, *"abcdef"), *life(2, *"abcdef")], id="what took the flush interval, and one in flight"
        ),
        pytest.param([*life(1, *"abc"), *life(2, *"abc"), *life(3, *"abc")], id="twice, as it was killed twice"),
        pytest.param([*life(1, "a", takes=9.0), *life(2, "a")], id="one in flight, however long"),
    ],
)
def test_g7_repetitions_within_the_limits_of_a_kill_are_accepted(handled):
    assert beyond_g7(handled, killed={1, 2}, commit_interval=0.0501) == []


@pytest.mark.parametrize(
    ("handled", "killed"),
    [
        pytest.param([*life(1, *"abcdefg"), *life(2, *"abcdefg")], {1}, id="more than the flush interval"),
        pytest.param([*life(1, *"aa")], {1}, id="twice in one life"),
        pytest.param([*life(1, *"ab"), *life(2, *"b")], set(), id="after a goodbye"),
        pytest.param([*life(1, *"abc"), *life(2, *"bd")], {1}, id="not all that came after"),
    ],
)
def test_g7_repetitions_beyond_the_limits_of_a_kill_are_reported(handled, killed):
    assert len(beyond_g7(handled, killed=killed, commit_interval=0.0501)) == 1


def test_a_fetch_of_the_next_page_does_not_start_a_new_poll():
    fetches = fetched((0, None, "b"), (1, "b", "d"), (2, "d", None), (3, "d", "e"), (4, "d", "e"), (5, "e", None))
    assert [poll.at for _, poll in poll_starts(fetches)] == [0, 3, 4]
    assert [before and before.at for before, _ in poll_starts(fetches)] == [None, 2, 3]


def test_g3_a_poll_without_a_token_is_reported():
    well = polls(0, 0, 0, 0, 1, 2, 3)  # the first one may have been decided for at any time before
    assert beyond_g3(well, rate=1, burst=3) == []
    assert len(beyond_g3([*well, *polls(3.5)], rate=1, burst=3)) == 1
    assert beyond_g3([*well, *polls(4)], rate=1, burst=3) == []
    assert beyond_g3([*well, *polls(3, client="other")], rate=1, burst=3) == []


def test_g3_a_late_poll_may_have_taken_its_token_any_time_after_the_last_poll_ended():
    """On a busy machine, the consumer may not have run in between."""
    late = polls(0, 0, 0, 0, 1.9, 2, 3, 4)
    assert beyond_g3(late, rate=1, burst=3) == []
    assert len(beyond_g3([*late, *polls(4.9)], rate=1, burst=3)) == 1
    slow = [Fetch("c", 0, "d", 1.9), *polls(1.9, 1.9, 1.9)]
    assert beyond_g3(slow, rate=1, burst=3) == []
    assert len(beyond_g3([*slow, *polls(1.9)], rate=1, burst=3)) == 1


def test_g3_pages_take_no_tokens():
    pages = fetched(*((at, str(at), str(at + 1)) for at in range(9)))
    assert beyond_g3(pages, rate=0.001, burst=1) == []


def test_g3_a_fetch_sooner_than_retry_after_is_reported():
    first, second, other = (
        fetched((0, None, None)),
        fetched((2, None, None)),
        fetched((1.5, None, None), client="d"),
    )
    first[0].heard_at, first[0].retry_after = 0.9, 1.2
    assert len(impatient([*first, *second, *other])) == 1
    first[0].retry_after = 1.1
    assert impatient([*first, *second, *other]) == []


def test_g2_overlapping_fetches_of_a_client_are_reported():
    assert beyond_g2(fetched((0, None, "b"), (0.1, "b", None))) == []
    assert len(beyond_g2(fetched((0, None, "b"), (0.05, "b", None)))) == 1
    assert len(beyond_g2([Fetch("c", 0, None), *polls(1)])) == 1


def test_unrecorded_reports_requests_and_connections_missing_from_the_consumer_journal():
    seen, recorded = [Asked("c", 1.0, None), Asked("c", 2.0, None)], fetched((0, None, None), (1, None, None))
    assert unrecorded(seen, recorded) == []
    assert len(unrecorded([*seen, Asked("c", 3.0, None)], recorded)) == 1
    assert len(unrecorded([*seen, Asked("d", 3.0, None)], recorded)) == 1
    assert unrecorded([*seen, Asked("-", 3.0, None)], recorded) == [], "the test itself asks without a name"
    push, events = Dialled("c", 1.0, "/push"), Dialled("c", 1.0, "/events")
    assert unrecorded([push], [push, events]) == []
    assert len(unrecorded([push, push], [push, events])) == 1


def test_a_reconnect_sooner_than_the_backoff_allows_is_reported():
    assert beyond_reconnect_policy([Dialled("c", at, "/push") for at in (0, 0, 1, 3, 7)]) == []
    assert len(beyond_reconnect_policy([Dialled("c", at, "/push") for at in (0, 0, 0.9, 3, 7)])) == 1
    assert beyond_reconnect_policy([Dialled("c", at, "/push") for at in (0, 0, 31, 31)]) == []
    after_a_push = [Dialled("c", at, "/push") for at in (0, 0, 1, 3, 3.5)]
    assert len(beyond_reconnect_policy(after_a_push)) == 1
    assert beyond_reconnect_policy(after_a_push, pushed=[("c", 3.2)]) == []
    assert len(beyond_reconnect_policy(after_a_push, pushed=[("another", 3.2), ("c", 1.5)])) == 1


def test_g7_with_concurrency_only_repetitions_beyond_the_commit_interval_are_reported():
    overlapping = [Handled(1, name, 0.0, 0.01 * place) for place, name in enumerate("abcdefgh", 1)]
    handled = [*overlapping, *life(2, *"abcdefgh")]
    assert beyond_g7_together(handled, killed={1}, commit_interval=0.0501, concurrency=2) == []
    assert len(beyond_g7_together(handled, killed={1}, commit_interval=0.0499, concurrency=2)) == 1
    assert len(beyond_g7_together(handled, killed=set(), commit_interval=0.0501, concurrency=2)) == 1
    unfinished = [Handled(1, "x", 0.0), *life(2, "x")]
    assert beyond_g7_together(unfinished, killed={1}, commit_interval=0.0, concurrency=2) == []


def test_a_consumer_journal_tells_finished_messages_from_messages_in_progress(tmp_path):
    journal, read = Journal(tmp_path / "journal"), ConsumerJournal(tmp_path / "journal")
    for words in (("enters", 1, "a", 1.0), ("enters", 1, "b", 2.0), ("leaves", 1, "a", 3.0)):
        journal.write(*words)
    journal.close()
    assert read.read().handled == [Handled(1, "a", 1.0, 3.0), Handled(1, "b", 2.0, math.inf)]
    assert read.ids == {"a"}


def test_journals_are_read_as_they_grow(tmp_path):
    journal, read = Journal(tmp_path / "journal"), ConsumerJournal(tmp_path / "journal")
    assert read.read().handled == []
    journal.write("begins", 1)
    journal.write("enters", 1, "a", 2.5)
    with (tmp_path / "journal").open("a") as file:
        file.write("leaves 1 ")
    assert read.read().handled == [Handled(1, "a", 2.5, math.inf)]
    assert (read.ids, read.begun) == (set(), {1})
    with (tmp_path / "journal").open("a") as file:
        file.write("a 3.5\n")
    assert read.read().handled == [Handled(1, "a", 2.5, 3.5)]
    journal.close()


def test_a_consumer_journal_has_the_listener_events_of_each_life(tmp_path):
    journal, read = Journal(tmp_path / "journal"), ConsumerJournal(tmp_path / "journal")
    for words in (("channel", 1, "up", 1.0), ("channel", 2, "pushed", 2.5)):
        journal.write(*words)
    journal.close()
    assert read.read().said == [Said(1, "up", 1.0), Said(2, "pushed", 2.5)]


def test_a_consumer_journal_has_the_fetches_and_connections_of_each_life(tmp_path):
    journal, read = Journal(tmp_path / "journal"), ConsumerJournal(tmp_path / "journal", "me")
    for words in (
        ("fetches", 1, 1.0, "-"),
        ("fetches", 2, 2.0, "b"),
        ("fetched", 2, 2.0, 2.5, "c", 0.0, 0.0),
        ("fetches", 2, 3.0, "c"),
        ("dials", 2, 3.0, "/push"),
        ("fetched", 2, 3.0, 3.5, "failed", 3.4, 7.0),
        ("fetches", 2, 4.0, "c"),
        ("fetched", 2, 4.0, 4.5, "-", 0.0, 0.0),
    ):
        journal.write(*words)
    journal.close()
    assert read.read().fetches == [
        Fetch("me-1", 1.0, None),
        Fetch("me-2", 2.0, "b", 2.5, "c"),
        Fetch("me-2", 3.0, "c", 3.5, failed=True, heard_at=3.4, retry_after=7.0),
        Fetch("me-2", 4.0, "c", 4.5),
    ]
    assert read.dialled == [Dialled("me-2", 3.0, "/push")]


def test_the_servers_journal_has_requests_and_connections(tmp_path):
    journal, read = Journal(tmp_path / "journal"), ServerJournal(tmp_path / "journal")
    for words in (("asked", "c", 1.0, "-"), ("asked", "d", 2.0, "b"), ("dialled", "c", 3.0, "/push")):
        journal.write(*words)
    journal.close()
    assert read.read().asked == [Asked("c", 1.0, None), Asked("d", 2.0, "b")]
    assert read.dialled == [Dialled("c", 3.0, "/push")]


def test_until_raises_a_timeout_error_that_names_the_missing_event():
    with pytest.raises(TimeoutError, match=r"not within 0\.01 s: the sun rises"):
        until(lambda: False, 0.01, "the sun rises")
