"""The processes that the demo starts, and what it asks them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from demo_figures import Pushed

PATIENCE = 20.0
"""Seconds for what should happen at once."""


class Server:
    """The reference server, in its own process, which ends with this one."""

    def __init__(self, backlog: int) -> None:
        command = [
            sys.executable,
            "-m",
            "push_to_poll_client.testing.server",
            f"--backlog={backlog}",
            "--until-eof",
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None  # noqa: S101 - for the type checker
        self.places = json.loads(self.process.stdout.readline())
        self.http = httpx.Client(base_url=self.places["base_url"])

    def publish(self) -> None:
        """Publish one message."""
        self.http.post("/publish", json=1).raise_for_status()

    def order(self, **faults: Any) -> None:
        """Order faults."""
        self.http.post("/faults", json=faults).raise_for_status()

    def stats(self) -> dict[str, Any]:
        """What the server counted."""
        counters: dict[str, Any] = self.http.get("/stats").json()
        return counters

    def pushes(self) -> list[Pushed]:
        """Each push that was due."""
        return [Pushed(push["cursor"], push["at"], push["sent"]) for push in self.http.get("/pushes").json()]

    def published(self) -> set[str]:
        """The ids in the feed, read by plain HTTP."""
        ids: list[str] = []
        while page := self.http.get("/feed", params={"lastEventId": ids[-1]} if ids else {}).json():
            ids += [event["id"] for event in page]
        return set(ids)

    def stop(self) -> None:
        """End it."""
        self.http.close()
        self.process.communicate(timeout=PATIENCE)


class ConsumerProcess:
    """`demo_consumer.py`, killed and started again at will."""

    def __init__(self, directory: Path, places: dict[str, str]) -> None:
        self._log = (directory / "consumer.log").open("ab")
        self._environment = {**os.environ, "DEMO_HANDLED": str(directory / "handled")}
        program = Path(__file__).with_name("demo_consumer.py")
        self._command = [sys.executable, program, places["url"], places["push_url"], directory / "orders.db"]
        self.killed = 0
        self.start()

    def start(self) -> None:
        """Start it."""
        self.process = subprocess.Popen(self._command, env=self._environment, stderr=self._log)

    def kill(self) -> None:
        """SIGKILL: it cannot say goodbye."""
        self.killed = self.process.pid
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Let it end by itself.

        Returns:
            Its exit code.
        """
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()
