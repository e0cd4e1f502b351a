"""Verdicts about the guarantees, by the journals of handler, feed, listeners and server; never by counters.

Each verdict is a list of sentences, empty if all is well. None depends on the load of the machine. Distances are
measured between times at which the consumer recorded the start of an action: a server that does not get to run
sees requests later, and closer together. Requests at the server are counted, so that none is unrecorded. Upper
limits on waits are not checked here, but in virtual time.
"""

import math
from collections import Counter, defaultdict
from itertools import pairwise, takewhile

from push_to_poll_client.listeners import _backoff

ROUNDING = 1e-6
"""Seconds or polls by which sums of floating-point numbers may differ."""


def by_life(handled):
    """Return the lines of each life, in order."""
    lives = defaultdict(list)
    for line in handled:
        lives[line.life].append(line)
    return lives


def lost(ids, handled):
    """Published messages that the handler did not finish, and unknown messages."""
    seen = {line.id for line in handled if line.left < math.inf}
    never_handled = [f"{name} was published and never handled" for name in ids if name not in seen]
    return never_handled + [f"{name} was handled and never published" for name in sorted(seen.difference(ids))]


def disordered(handled):
    """First occurrences that are not in the order of the feed, whose ids sort (G5)."""
    first = list(dict.fromkeys(line.id for line in handled))
    return [f"{after} was handled before {before}" for after, before in pairwise(first) if after > before]


def redone(handled):
    """Return for each life the number of its messages that a later life repeated."""
    last_life = {line.id: line.life for line in handled}
    return {life: sum(last_life[line.id] > life for line in lines) for life, lines in by_life(handled).items()}


def beyond_g7(handled, *, killed, commit_interval):
    """Repeated messages that no kill explains.

    A kill costs the work of the killed life since its last commit: the end of its lines. All of these but the one
    in flight were handled within `commit_interval`, from the entry of the first to the end of the last but one.

    Args:
        handled: All lines.
        killed: The killed lives. The others ended by themselves, which allows no repetition.
        commit_interval: Interval of the consumer, in seconds.
    """
    last_life = {line.id: line.life for line in handled}
    wrong = []
    for life, lines in by_life(handled).items():
        if len({line.id for line in lines}) < len(lines):
            wrong.append(f"life {life} handled a message twice")
        again = [number for number, line in enumerate(lines) if last_life[line.id] > life]
        if not again:
            continue
        tail = lines[again[0] :]
        if life not in killed:
            wrong.append(f"life {life} was not killed, and {len(again)} of its messages were done again")
        if len(again) < len(tail):
            wrong.append(f"life {life}: {tail[0].id} was done again, and not all that came after it")
        took = tail[-2].left - tail[0].entered if len(tail) > 1 else 0.0
        if took > commit_interval:
            wrong.append(f"life {life}: {len(tail)} done again, which took {took:.4f} s > {commit_interval}")
    return wrong


def beyond_g7_together(handled, *, killed, commit_interval, concurrency):
    """Like `beyond_g7`, for a consumer with several messages in flight.

    A kill costs the messages that the killed life finished since its last commit. All of them finished within
    `commit_interval`, except those in flight when the commit was due.

    Args:
        handled: All lines.
        killed: The killed lives.
        commit_interval: Interval of the consumer, in seconds.
        concurrency: Most messages in flight.
    """
    last_life = {line.id: line.life for line in handled}
    wrong = []
    for life, lines in by_life(handled).items():
        again = sorted(line.left for line in lines if last_life[line.id] > life and line.left < math.inf)
        if again and life not in killed:
            wrong.append(f"life {life} was not killed, and {len(again)} of its messages were done again")
        took = again[-1 - concurrency] - again[0] if len(again) > concurrency else 0.0
        if took > commit_interval:
            wrong.append(f"life {life}: {len(again)} done again, which took {took:.4f} s > {commit_interval}")
    return wrong


def poll_starts(fetches):
    """Return the first fetch of each poll of one client, with the fetch before it or `None`.

    A fetch for the next page of the fetch before it continues that poll.
    """
    before = [None, *fetches]
    return [
        (earlier, fetch)
        for earlier, fetch in zip(before, fetches, strict=False)
        if earlier is None or earlier.next is None or fetch.after != earlier.next
    ]


def of_each_client(requests):
    """Return the requests of each client, in order."""
    clients = defaultdict(list)
    for request in requests:
        clients[request.client].append(request)
    return clients


def beyond_g3(fetches, *, rate, burst):
    """Polls that began without a token: more than burst + rate·T in a window of T seconds.

    A poll takes its token after the end of the fetch before it, and before its own first fetch begins. So polls i
    to j took their tokens within the time from the end of the fetch before i to the begin of j. If that window has
    too many, the load of the machine cannot explain it.

    Args:
        fetches: All fetches.
        rate: Polls a second.
        burst: Polls at once.
    """
    wrong = []
    for client, own in of_each_client(fetches).items():
        most = -math.inf  # over all beginnings of a window that ends here
        for number, (before, poll) in enumerate(poll_starts(own)):
            if before is not None:
                most = max(most, rate * min(before.ended, poll.at) - number)
            excess = most + number + 1 - rate * poll.at - burst
            if excess > ROUNDING:
                wrong.append(f"client {client} polled {excess:.1f} times too often at {poll.at:.3f}")
    return wrong


def impatient(fetches):
    """Fetches that began before the end of a requested pause (G3)."""
    return [
        f"client {client} asked again after {second.at - first.heard_at:.3f} s, and not after {first.retry_after}"
        for client, own in of_each_client(fetches).items()
        for first, second in pairwise(own)
        if first.retry_after and second.at - first.heard_at < first.retry_after - ROUNDING
    ]


def beyond_g2(fetches):
    """Fetches of one client that overlap."""
    return [
        f"client {client} asked again after {second.at - first.at:.3f} s, before the answer"
        for client, own in of_each_client(fetches).items()
        for first, second in pairwise(own)
        if second.at < first.ended
    ]


def unrecorded(seen, recorded):
    """Requests or connections at the server that no consumer recorded, so that no other verdict checks them.

    Args:
        seen: Requests of named clients at the server.
        recorded: Records of the consumers, made before they sent the requests.
    """
    known = Counter(map(_channel_of, recorded))
    return [
        f"the server saw {count} of {name}, which wrote down {known[name]}"
        for name, count in Counter(map(_channel_of, seen)).items()
        if count > known[name] and name[0] != "-"
    ]


def _channel_of(request):
    return request.client, getattr(request, "path", "feed")


def beyond_reconnect_policy(dialled, *, haste=1.0, pushed=()):
    """Connections sooner than the smallest delays of the policy, while none of them can have lasted.

    Args:
        dialled: All attempts to connect, by the clock of the client.
        haste: Factor by which the delays were shortened.
        pushed: Client and time of each push. A connection that brought a push and ends in order, for example by a
            half close, is not a failure.
    """
    channels, pushes = defaultdict(list), defaultdict(list)
    for connection in dialled:
        channels[connection.client, connection.path].append(connection.at * haste)
    for client, at in pushed:
        pushes[client].append(at * haste)
    found = []
    for (client, path), times in channels.items():
        failures = 0
        for number, (before, after) in enumerate(_not_lived(times)):
            if any(before <= at <= after for at in pushes[client]):
                continue
            if after - before < least_delay(failures) - ROUNDING:
                soon = f"{after - before:.3f} s after the one before"
                found.append(f"{client}: connection {number + 2} to {path} came {soon}")
            failures += 1
    return found


def _not_lived(times):
    """Return the neighbours up to the first connection that may have lasted, which would begin a new streak."""
    return takewhile(lambda pair: pair[1] - pair[0] < _backoff.STABLE_AFTER, pairwise(times))


def least_delay(failures):
    """Return the smallest delay in seconds after this many failures and one more."""
    if not failures:
        return 0.0
    return min(_backoff.BASE_DELAY * 2.0 ** (failures - 1), _backoff.MAX_DELAY)
