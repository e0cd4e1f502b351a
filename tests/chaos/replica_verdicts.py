"""Verdicts about replicas that share a store, by the history that the database wrote (`database_history.py`).

Each verdict is a list of sentences, empty if all is well. None depends on the load of the machine, or on what a
client said. Cursors are numbers, and a key is the number of its message as the feed writes it.
"""

from collections import Counter, defaultdict
from itertools import pairwise

from push_to_poll_client.stores._postgres.notices import digest_of

TAKEN_BACK = 1 / 2
"""Part of a lease at which a new process of the same instance may claim: a heartbeat was missed."""


def of_each_consumer(changes):
    """Return the changes of each consumer, in order."""
    consumers = defaultdict(list)
    for change in changes:
        consumers[change.consumer].append(change)
    return consumers


def place(change):
    """Return the number of a change's cursor; 0 is the inception."""
    return int(change.cursor or b"0")


def gone_back(changes):
    """Changes that made `(token, commits)` or the cursor smaller, or moved the cursor without a commit."""
    wrong = []
    for own in of_each_consumer(changes).values():
        for before, after in pairwise(own):
            was, now = (before.token, before.commits), (after.token, after.commits)
            if after.token < before.token or after.commits < before.commits:
                wrong.append(f"(token, commits) went from {was} to {now}")
            if place(after) < place(before):
                wrong.append(f"the cursor went back from {place(before)} to {place(after)} at {now}")
            elif place(after) > place(before) and after.commits == before.commits:
                wrong.append(f"the cursor went to {place(after)} without a commit, at {now}")
    return wrong


def shared_tokens(changes):
    """Tokens with which more than one owner wrote."""
    owners = defaultdict(set)
    for change in changes:
        if change.owner is not None:
            owners[change.consumer, change.token].add(change.owner)
    return [
        f"{len(some)} owners wrote with the token {token}" for (_, token), some in owners.items() if len(some) > 1
    ]


def foreign_commits(changes):
    """Commits of a process that did not make the newest claim."""
    wrong = []
    for own in of_each_consumer(changes).values():
        claimant, token = None, -1
        for change in own:
            if change.token > token:
                claimant, token = change.writer, change.token
            elif change.writer != claimant:
                wrong.append(f"{change.writer} wrote after {claimant} had claimed with the token {token}")
    return wrong


def several_commits(changes):
    """Transactions that committed twice, or commits that were counted as more than one."""
    wrong = []
    for own in of_each_consumer(changes).values():
        for before, after in pairwise(own):
            if after.commits > before.commits + 1:
                wrong.append(f"commits went from {before.commits} to {after.commits}")
    return wrong


def robbed(claims, *, lease):
    """Claims of a name whose lease had not ended, and that were not of the same instance after a missed heartbeat.

    Args:
        claims: Claims without a release before them.
        lease: Length of a lease in seconds.
    """
    wrong = []
    for claim in claims:
        allowed = lease * TAKEN_BACK if claim.same_instance else 0.0
        if claim.remaining > allowed:
            wrong.append(f"a lease was taken {claim.remaining:.3f} s before its end")
    return wrong


def unfenced(changes, records):
    """Records whose transaction did not change the row of the consumer, so that nothing was compared."""
    compared = {(change.consumer, change.transaction) for change in changes}
    loose = {(record.consumer, record.transaction) for record in records} - compared
    return [f"transaction {transaction} wrote records and no commit" for _, transaction in sorted(loose)]


def recorded_twice(records):
    """Messages that were recorded more than once: the second time they had been processed already."""
    counts = Counter((record.consumer, record.digest) for record in records)
    return [f"{digest.hex()} was recorded {count} times" for (_, digest), count in counts.items() if count > 1]


def unrecorded_messages(keys, records):
    """Published messages without a record, and records of messages that were never published."""
    known, seen = {digest_of(key): key for key in keys}, {record.digest for record in records}
    lost = [f"{key} was published and never recorded" for digest, key in known.items() if digest not in seen]
    return lost + [f"{digest.hex()} was recorded and never published" for digest in sorted(seen - known.keys())]


def ahead_of_records(keys, changes, records):
    """Saved cursors with a message before them that was not recorded by then (G5).

    Args:
        keys: Keys of all messages, in the order of the feed.
        changes: All changes of one consumer.
        records: Its records.
    """
    position = {}  # of the last change of each transaction
    for number, change in enumerate(changes):
        position[change.transaction] = number
    recorded = {}  # the position at which each message was recorded first
    for record in records:
        at = position.get(record.transaction, len(changes))
        recorded[record.digest] = min(at, recorded.get(record.digest, at))
    wrong, settled = [], 0
    for number, change in enumerate(changes):
        end = place(change)
        while settled < end:
            digest = digest_of(keys[settled])
            if recorded.get(digest, len(changes)) > position[change.transaction]:
                wrong.append(f"change {number} saved the cursor {end} before {keys[settled]} was recorded")
            settled += 1
    return wrong


def not_exactly_once(keys, transfers, records):
    """Effects that are missing, or were done twice, or not in the transaction that recorded their message (G8)."""
    done = defaultdict(list)
    for transfer in transfers:
        done[transfer.number].append(transfer.transaction)
    recorded = {record.digest: record.transaction for record in records}
    wrong = []
    for key in keys:
        transactions = done.pop(int(key), [])
        if len(transactions) != 1:
            wrong.append(f"{key} was done {len(transactions)} times")
        elif recorded.get(digest_of(key)) != transactions[0]:
            wrong.append(f"{key} was done in one transaction and recorded in another, or not recorded")
    return wrong + [f"{number} was done and never published" for number in done]


def judge(history, keys, *, lease, transactional):
    """Return all that is wrong, by all verdicts.

    Args:
        history: Of a database with one consumer.
        keys: Keys of all messages, in the order of the feed.
        lease: Length of a lease in seconds.
        transactional: True if each message has a transfer in the database.
    """
    changes, records = history.changes, history.records
    return [
        *gone_back(changes),
        *shared_tokens(changes),
        *foreign_commits(changes),
        *several_commits(changes),
        *robbed(history.claims, lease=lease),
        *unfenced(changes, records),
        *recorded_twice(records),
        *unrecorded_messages(keys, records),
        *ahead_of_records(keys, changes, records),
        *(not_exactly_once(keys, history.transfers, records) if transactional else ()),
    ]
