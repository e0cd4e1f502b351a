"""The servers that push channels ride on: those of the tests."""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from tests.support import brokers, durable_streams_server, postgres_server, valkey_server  # found there


@contextmanager
def address_of(sender: str) -> Iterator[str]:
    """Start the server that a kind of sender needs; its address, empty when it needs none."""
    if sender == "postgres":
        with closing(postgres_server.PostgresServer()) as server:
            server.start()
            yield server.conninfo
    elif sender == "redis":
        with closing(valkey_server.ValkeyServer()) as server:
            server.start()
            yield server.url
    elif sender == "nats":
        broker = brokers.NATS()
        broker.start()
        yield f"nats://127.0.0.1:{broker.port}"
        broker.close()
    elif sender == "append":
        with durable_streams_server.serving(webhooks=True) as server:
            yield f"{server.url}/v1/stream"
    else:
        yield ""
