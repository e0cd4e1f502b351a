"""Times of a lease: when the owner stops, and when a replica that stands by tries again."""

from push_to_poll_client.stores._lease import lease_end, next_try


def test_a_lease_ends_for_its_owner_at_the_time_of_the_request_plus_its_length():
    assert lease_end(100.0, 10.0) == 110.0


def test_a_replica_tries_again_when_the_lease_of_the_owner_has_ended():
    assert next_try(100.0, 4.0, 10.0, jitter=0.0) == 104.0


def test_replicas_spread_their_tries_over_a_twentieth_of_the_lease():
    assert next_try(100.0, 4.0, 10.0, jitter=1.0) == 104.5
