"""No process outlives the tests, even if the tests are killed."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.support.processes import wait_for_end

PARENT = """
import pathlib, sys
from tests.chaos.processes import ConsumerProcess, ForkServer, ServerProcess
directory = pathlib.Path(sys.argv[1])
server = ServerProcess(directory)
fork_server = ForkServer(directory) if sys.argv[2] == "forked and stopped" else None
consumer = ConsumerProcess(directory, url=server.url, push=[], fork_server=fork_server)
consumer.start()
while not consumer.has_begun():
    pass
if "stopped" in sys.argv[2]:
    consumer.pause()
print(server.pid, consumer.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
@pytest.mark.parametrize(
    "state",
    [
        pytest.param("running", marks=pytest.mark.long_form),
        pytest.param("stopped", marks=pytest.mark.long_form),
        "forked and stopped",  # its server was not forked
    ],
)
def test_child_processes_end_when_their_parent_is_killed(tmp_path, state):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PARENT, tmp_path, state]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as parent:
        children = [psutil.Process(int(child)) for child in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    assert len(children) == 2
    wait_for_end(*children)
