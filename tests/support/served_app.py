"""Serve an ASGI application on 127.0.0.1, in its own thread and event loop."""

import socket
import threading
from contextlib import contextmanager, nullcontext

import uvicorn

from tests.support.forms import GUARD

HOST = "127.0.0.1"


@contextmanager
def serving(app):
    """Serve the application until the end of the block. Yield its URL."""
    listening = socket.socket()
    listening.bind((HOST, 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none"))
    server.capture_signals = nullcontext  # signals belong to the main thread
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://{HOST}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(GUARD)
        listening.close()
