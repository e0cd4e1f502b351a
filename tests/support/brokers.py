"""Real message brokers, each in its own process: MQTT by aedes, and the NATS server."""

import re
import subprocess
import sys
from pathlib import Path

import httpx

from tests.support.durable_streams_server import HOME, node
from tests.support.forms import GUARD
from tests.support.served import Process


class MQTT:
    """An MQTT broker. After a kill it starts again on the same port."""

    def __init__(self):
        self.port = 0
        self._process = Process()

    def start(self):
        self.port = httpx.URL(self._process.start(node(), HOME / "mqtt.mjs", str(self.port))).port

    def kill(self):
        self._process.kill()

    def close(self):
        self._process.end()


class NATS:
    """A NATS server. After a kill it starts again on the same port."""

    def __init__(self):
        self.port = -1

    def start(self):
        server = Path(sys.executable).parent / "nats-server"
        command = [server, "-a", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        lines = iter(self._process.stderr.readline, "")
        self.port = next(int(found[1]) for line in lines if (found := re.search(r"connections on .*:(\d+)", line)))

    def kill(self):
        self._process.kill()
        self._process.wait(GUARD)
        self._process.stderr.close()

    close = kill
