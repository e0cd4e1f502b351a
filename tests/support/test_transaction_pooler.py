"""The stand-in for PgBouncer behaves like PgBouncer in transaction mode, where a store can tell the difference."""

import asyncio
import gc
import socket
import warnings

import psycopg
import pytest

from tests.support.postgres_server import PostgresServer, shared_server
from tests.support.transaction_pooler import TransactionPooler


@pytest.fixture
def server(request):
    return shared_server(request.config)


@pytest.fixture
def connect():
    """Connect, and close at the end."""
    connections = []

    def connect(pooler, **settings):
        connection = psycopg.connect(pooler.conninfo, autocommit=True, prepare_threshold=None, **settings)
        connections.append(connection)
        return connection

    yield connect
    for connection in connections:
        connection.close()


@pytest.fixture
def pooler(server):
    with TransactionPooler(server.port, size=1) as pooler:
        yield pooler


def backend(connection):
    return connection.execute("SELECT pg_backend_pid()").fetchone()[0]


def test_clients_share_one_server_connection(pooler, connect):
    clients = [connect(pooler) for _ in range(3)]
    assert len({backend(client) for client in clients * 2}) == 1


def test_a_transaction_keeps_its_server_connection_until_it_ends(server, connect):
    with TransactionPooler(server.port, size=2) as pooler:
        first, second = connect(pooler), connect(pooler)
        with first.transaction():
            mine = backend(first)
            assert backend(second) != mine
            assert backend(first) == mine


def test_a_client_waits_while_all_server_connections_are_in_transactions(pooler, connect):
    first, second = connect(pooler), connect(pooler)
    with second.pipeline():
        with first.transaction():
            backend(first)
            asked = second.execute("SELECT 1")
            assert backend(first)
        assert asked.fetchone() == (1,)


def test_a_listener_hears_nothing_and_gets_no_error(server, pooler, connect):
    listener, other = connect(pooler), connect(pooler)
    listener.execute("LISTEN pooled")
    server.notify("pooled", "dropped")
    assert backend(other)  # the notification reached the server connection before this answer
    assert list(listener.notifies(timeout=0)) == []
    assert listener.execute("SELECT * FROM pg_listening_channels()").fetchall() == [("pooled",)]


def test_a_notification_of_its_own_reaches_a_listener_that_shares_the_server_connection(pooler, connect):
    """So a store that notifies itself on its LISTEN connection does not learn that others cannot reach it."""
    listener = connect(pooler)
    heard = []
    listener.add_notify_handler(lambda notify: heard.append(notify.payload))
    listener.execute("LISTEN pooled")
    listener.execute("NOTIFY pooled, 'from myself'")
    assert heard == ["from myself"]


def test_an_advisory_lock_stays_with_the_server_connection(server, connect):
    with TransactionPooler(server.port, size=1) as pooler:
        owner = connect(pooler)
        owner.execute("SELECT pg_advisory_lock(21)")
        owner.close()
        other = connect(pooler)
        with psycopg.connect(server.conninfo) as direct:
            assert direct.execute("SELECT pg_try_advisory_lock(21)").fetchone() == (False,)
        assert other.execute("SELECT pg_try_advisory_lock(21)").fetchone() == (True,), "as if it were its own"


def test_a_setting_reaches_other_clients(pooler, connect):
    one, other = connect(pooler), connect(pooler)
    one.execute("SET lock_timeout = '12s'")
    assert other.execute("SHOW lock_timeout").fetchone() == ("12s",)


def test_a_server_connection_has_the_application_name_of_its_client(pooler, connect):
    one, other = connect(pooler, application_name="one"), connect(pooler, application_name="it's another")
    for client, name in ((one, "one"), (other, "it's another"), (other, "it's another"), (one, "one")):
        assert client.execute("SHOW application_name").fetchone() == (name,)
    assert backend(one) == backend(other)


def test_a_pipeline_works(pooler, connect):
    one, other = connect(pooler), connect(pooler)
    with one.pipeline() as pipeline:
        with one.transaction():
            answers = [one.execute("SELECT %s::int", (number,)) for number in range(100)]
        pipeline.sync()
        assert [answer.fetchone() for answer in answers] == [(number,) for number in range(100)]
        assert backend(other)
        assert backend(one)


def test_a_pipeline_that_fails_gives_its_server_connection_back(pooler, connect):
    one, other = connect(pooler), connect(pooler)
    with pytest.raises(psycopg.errors.DivisionByZero), one.pipeline(), one.transaction():
        one.execute("SELECT 1/0")
    assert backend(other) == backend(one)


def test_copy_works(pooler, connect):
    one, other = connect(pooler), connect(pooler)
    with one.transaction():
        one.execute("CREATE TEMPORARY TABLE copied(number int) ON COMMIT DROP")
        with one.cursor().copy("COPY copied FROM STDIN") as copy:
            for number in range(1000):
                copy.write_row((number,))
        assert one.execute("SELECT count(*) FROM copied").fetchone() == (1000,)
    assert backend(other)


def test_a_client_that_leaves_in_a_transaction_has_it_rolled_back(pooler, connect):
    one, other = connect(pooler), connect(pooler)
    one.execute("BEGIN")
    before = backend(one)
    one.close()
    assert backend(other) != before


def test_a_client_is_told_that_its_server_connection_ended(server, pooler, connect):
    one, other = connect(pooler), connect(pooler)
    one.execute("BEGIN")
    server.execute(f"SELECT pg_terminate_backend({backend(one)}, 60000)")
    with pytest.raises(psycopg.OperationalError):
        backend(one)
    assert backend(other)


def test_clients_can_connect_while_the_server_is_away_and_their_queries_fail(connect):
    server = PostgresServer()
    try:
        server.start()
        with TransactionPooler(server.port, size=1) as pooler:
            assert backend(connect(pooler))
            server.stop()
            client = connect(pooler)
            with pytest.raises(psycopg.OperationalError, match="server login has been failing"):
                backend(client)
            server.start()
            assert backend(connect(pooler))
    finally:
        server.close()


def test_startup_options_are_refused(pooler, connect):
    with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter: options"):
        connect(pooler, options="-c statement_timeout=5000")


def test_no_accepted_socket_is_lost_whenever_the_pooler_ends(server):
    """After each number of turns of its event loop, from the client's connect until it waits for the client."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for turns in range(10):
            with TransactionPooler(server.port) as pooler, socket.socket() as client:

                async def connect_and_end(pooler=pooler, client=client, turns=turns):
                    client.connect(("127.0.0.1", pooler.port))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    pooler._stop.set()

                asyncio.run_coroutine_threadsafe(connect_and_end(), pooler._loop)
                pooler._thread.join()
        gc.collect()
    assert not [str(each.message) for each in caught]
