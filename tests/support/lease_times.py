"""Times of a lease, as the model of ownership explores them and a store on a server has to compute them.

All times are seconds on the caller's clock, which must also count while the machine is suspended.
"""

SPREAD = 0.05
"""Part of a lease over which the replicas that stand by spread their next try: 0.5 s of 10 s."""


def lease_end(requested: float, lease: float) -> float:
    """Return the time at which the owner must stop using its lease.

    The server counts from the moment at which it granted the lease. That is after the request was sent, so the
    owner stops before another replica can claim the name, however long the request or its answer took.

    Args:
        requested: Time before the claim or the heartbeat was sent.
        lease: Length of the lease in seconds.
    """
    return requested + lease


def next_try(requested: float, seconds_left: float, lease: float, jitter: float) -> float:
    """Return the time at which a replica that stands by tries to claim the name again.

    Counted from the request, not from its answer: a slow answer must not delay the take-over. If the request was
    the slow part, the try comes early, and the next answer corrects it.

    Args:
        requested: Time before the claim was sent that found the name owned.
        seconds_left: Time until the end of the other owner's lease, as the server answered.
        lease: Length of the lease in seconds.
        jitter: Random number from 0 to 1, so that not all replicas try at the same time.
    """
    return requested + seconds_left + SPREAD * lease * jitter
