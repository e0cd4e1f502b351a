"""Processes of the demo: the server and the consumer. They end with this process, even if it is killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from push_to_poll_client.cli.demo._figures import ObservedPush

STEP_TIMEOUT = 20.0
"""Seconds to wait for something that should happen at once."""

# -P: do not import from the current directory.
_PYTHON_MODULE = [sys.executable, "-P", "-m"]


class ServerProcess:
    """The reference server, in its own process.

    Args:
        backlog: The number of messages in the feed at the start.
    """

    def __init__(self, backlog: int) -> None:
        command = [*_PYTHON_MODULE, "push_to_poll_client.testing.server", f"--backlog={backlog}", "--until-eof"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.process.stdout is not None  # for the type checker  # noqa: S101
        self.addresses: dict[str, str] = json.loads(self.process.stdout.readline())
        self.http = httpx.Client(base_url=self.addresses["base_url"], trust_env=False)

    def publish(self) -> None:
        """Publish one message."""
        self.http.post("/publish", json=1).raise_for_status()

    def set_faults(self, **faults: Any) -> None:
        """Set faults of the server."""
        self.http.post("/faults", json=faults).raise_for_status()

    def stats(self) -> dict[str, Any]:
        """The counters of the server."""
        counters: dict[str, Any] = self.http.get("/stats").json()
        return counters

    def pushes(self) -> list[ObservedPush]:
        """Each push that was due, also if it was dropped."""
        return [ObservedPush(push["cursor"], push["at"], push["sent"]) for push in self.http.get("/pushes").json()]

    def published(self) -> set[str]:
        """The ids in the feed, read by plain HTTP, without the faults meant for the consumer."""
        self.set_faults(fail_next=0)
        ids: list[str] = []
        while page := self.http.get("/feed", params={"lastEventId": ids[-1]} if ids else {}).json():
            ids += [event["id"] for event in page]
        return set(ids)

    def close(self) -> None:
        """End the server."""
        self.http.close()
        self.process.communicate(timeout=STEP_TIMEOUT)


class ConsumerProcess:
    """A process with `demo/_consumer.py` that can be killed and started again.

    Args:
        directory: The directory for its files.
        addresses: The URLs of the server, by name.

    Attributes:
        killed: The id of the killed process, or 0.
    """

    def __init__(self, directory: Path, addresses: dict[str, str]) -> None:
        self.killed = 0
        self._log = (directory / "consumer.log").open("ab")
        self._environment = {**os.environ, "no_proxy": "127.0.0.1"}
        self._command = [
            *_PYTHON_MODULE,
            "push_to_poll_client.cli.demo._consumer",
            addresses["url"],
            addresses["push_url"],
            str(directory / "orders.db"),
            str(directory / "handled"),
        ]
        self.start()

    def start(self) -> None:
        """Start the process."""
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self.killed = self._process.pid
        self._end_at_once()

    def stop(self) -> int:
        """Ask the process to end, and wait for it.

        Returns:
            The exit code.
        """
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=STEP_TIMEOUT)
        return self._process.returncode

    def close(self) -> None:
        """End the process if it still runs, and close its log."""
        self._end_at_once()
        self._log.close()

    def _end_at_once(self) -> None:
        self._process.kill()
        self._process.communicate()
