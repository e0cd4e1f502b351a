"""Whether the guarantees held, judged by what handler and server wrote down; never by the client's own counters.

Each verdict is a list of sentences, empty when all is well.
"""

import math
from collections import defaultdict
from itertools import pairwise, takewhile

from push_to_poll_client.listeners import _reconnect

CLOCK = 0.02
"""Seconds from when the client has an answer to when the server has written down that it was sent."""


def by_life(handled):
    """The lines of each life, in order."""
    lives = defaultdict(list)
    for line in handled:
        lives[line.life].append(line)
    return lives


def lost(ids, handled):
    """The handler was done with every published message, and knew no other."""
    seen = {line.id for line in handled if line.left < math.inf}
    never_handled = [f"{name} was published and never handled" for name in ids if name not in seen]
    return never_handled + [f"{name} was handled and never published" for name in sorted(seen.difference(ids))]


def disordered(handled):
    """The first occurrences stand in the order of the feed (its ids sort), so that nothing was skipped (G5)."""
    first = list(dict.fromkeys(line.id for line in handled))
    return [f"{after} was handled before {before}" for after, before in pairwise(first) if after > before]


def redone(handled):
    """For each life, how many of its messages a later life did again."""
    last_life = {line.id: line.life for line in handled}
    return {life: sum(last_life[line.id] > life for line in lines) for life, lines in by_life(handled).items()}


def beyond_g7(handled, *, killed, flush_interval):
    """What was done twice although no kill excuses it.

    A kill costs what the killed life did since its last commit: the end of its lines. All of these but the one in
    flight were handled within `flush_interval`, from when the first was entered to when the last but one was left.

    Args:
        handled: All lines.
        killed: The lives that were killed; all others said goodbye, which excuses nothing.
        flush_interval: That of the consumer, in seconds.
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
        if took > flush_interval:
            wrong.append(f"life {life}: {len(tail)} done again, which took {took:.4f} s > {flush_interval}")
    return wrong


def beyond_g7_together(handled, *, killed, flush_interval, concurrency):
    """As `beyond_g7`, for a consumer that has several messages in hand.

    A kill costs what the killed life ended since its last commit. All of it but those in hand when the commit was
    due ended within `flush_interval`.

    Args:
        handled: All lines.
        killed: The lives that were killed.
        flush_interval: That of the consumer, in seconds.
        concurrency: How many messages may be in hand.
    """
    last_life = {line.id: line.life for line in handled}
    wrong = []
    for life, lines in by_life(handled).items():
        again = sorted(line.left for line in lines if last_life[line.id] > life and line.left < math.inf)
        if again and life not in killed:
            wrong.append(f"life {life} was not killed, and {len(again)} of its messages were done again")
        took = again[-1 - concurrency] - again[0] if len(again) > concurrency else 0.0
        if took > flush_interval:
            wrong.append(f"life {life}: {len(again)} done again, which took {took:.4f} s > {flush_interval}")
    return wrong


def poll_starts(asked):
    """The requests of one client that began a poll: all but those for a further page.

    A further page is asked for after the last event of the answer before, and such an answer never ends a poll.
    """
    before = [None, *asked]
    return [
        request
        for earlier, request in zip(before, asked, strict=False)
        if earlier is None or earlier.last is None or request.after != earlier.last
    ]


def of_each_client(requests):
    """The requests of each client, in order."""
    clients = defaultdict(list)
    for request in requests:
        clients[request.client].append(request)
    return clients


def beyond_g3(asked, *, rate, burst, slack):
    """Polls that began though there was no token for them: in any window of T seconds ≤ burst + rate·T.

    Args:
        asked: All requests.
        rate: Polls a second.
        burst: Polls at once.
        slack: Seconds that a request may have been on its way, so that windows look shorter to the server.
    """
    wrong = []
    for client, requests in of_each_client(asked).items():
        most = level = burst + rate * slack
        since = 0.0
        for poll in poll_starts(requests):
            level = min(most, level + rate * (poll.at - since)) - 1
            since = poll.at
            if level < -1e-6:
                wrong.append(f"client {client} polled {-level:.1f} times too often at {poll.at:.3f}")
    return wrong


def impatient(asked):
    """Requests of a client that came sooner than the server asked for (G3)."""
    return [
        f"client {client} asked again after {second.at - first.ended:.3f} s, and not after {first.retry_after}"
        for client, requests in of_each_client(asked).items()
        for first, second in pairwise(requests)
        if second.at - first.ended < first.retry_after - CLOCK
    ]


def beyond_g2(asked):
    """Requests of one client that overlap, as the server saw them end."""
    return [
        f"client {client} asked again after {second.at - first.at:.3f} s, before the answer"
        for client, requests in of_each_client(asked).items()
        for first, second in pairwise(requests)
        if second.at < first.ended
    ]


def longest_quiet(asked, *, since, until):
    """The longest time without a request of one client between two moments, both of which count as one (G4).

    Args:
        asked: The requests of the client.
        since: Seconds.
        until: Seconds.
    """
    times = [since, *(request.at for request in asked if since < request.at < until), until]
    return max(after - before for before, after in pairwise(times))


def beyond_reconnect_policy(dialled, *, haste=1.0):
    """Connections sooner than the policy's smallest delays, while none of them can have lived.

    Attempts that no server saw make a streak longer than it looks, and the delays with it, never shorter.

    Args:
        dialled: All connections.
        haste: How many times shorter the delays were made.
    """
    channels = defaultdict(list)
    for connection in dialled:
        channels[connection.client, connection.path].append(connection.at * haste)
    return [
        f"{client}: connection {number + 2} to {path} came {after - before:.3f} s after the one before"
        for (client, path), times in channels.items()
        for number, (before, after) in enumerate(_not_lived(times))
        if after - before < least_delay(number)
    ]


def _not_lived(times):
    """The neighbours, up to the first connection that may have lived: it would begin a new streak."""
    return takewhile(lambda pair: pair[1] - pair[0] < _reconnect.LIVED, pairwise(times))


def least_delay(failures):
    """The smallest draw of the delay after one more failure than so many, in seconds."""
    if not failures:
        return 0.0
    return min(_reconnect.BASE_DELAY * 2.0 ** (failures - 1), _reconnect.MAX_DELAY)
