"""PostgreSQL servers of the tests: an old version, and replicas that take over with or without loss."""

import contextlib

import psycopg
import pytest

from tests.support.postgres_server import PostgresServer, old_server, shared_server


def test_the_old_server_is_older_than_the_newest(request):
    old, newest = old_server(request.config), shared_server(request.config)
    assert 14 <= major_version(old) < major_version(newest)
    assert old_server(request.config) is old


def major_version(server):
    with psycopg.connect(server.conninfo) as connection:
        return connection.info.server_version // 10_000


@pytest.fixture
def primary():
    with contextlib.closing(PostgresServer()) as server:
        server.start()
        server.execute("CREATE TABLE numbers(n int)", "INSERT INTO numbers VALUES (1)")
        yield server


def test_a_replica_is_read_only_until_it_is_promoted_and_then_lacks_what_it_did_not_receive(primary):
    with contextlib.closing(primary.replica()) as replica:
        replica.start()
        primary.execute("INSERT INTO numbers VALUES (2)")
        replica.catch_up()
        assert numbers(replica) == [1, 2]
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            replica.execute("INSERT INTO numbers VALUES (3)")
        replica.disconnect()
        primary.execute("INSERT INTO numbers VALUES (4)")
        primary.kill()
        replica.promote()
        replica.execute("INSERT INTO numbers VALUES (5)")
        assert numbers(replica) == [1, 2, 5]


def numbers(server):
    with psycopg.connect(server.conninfo) as connection:
        return [n for (n,) in connection.execute("SELECT n FROM numbers ORDER BY n")]
