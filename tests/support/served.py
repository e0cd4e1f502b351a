"""A real server in its own process: started, killed, restarted, and always ended."""

import queue
import signal
import subprocess
import threading

from tests.support.forms import GUARD

PATIENCE = GUARD


class Process:
    """A process that prints its URL first and ends with its standard input, hence with this process.

    Args:
        heard: Called with each later line, in a thread.
    """

    def __init__(self, heard=lambda line: None):
        self._heard = heard

    def start(self, *command):
        """Start the process. Return the URL."""
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        urls = queue.Queue()
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout, urls))
        self._reader.start()
        url = urls.get(timeout=GUARD)
        assert url is not None, "the server did not start; what it said is above"
        return url

    def tell(self, line):
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def suspend(self):
        """Suspend the process until `resume`; its connections stay open."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self):
        self._process.send_signal(signal.SIGCONT)

    def kill(self):
        """Kill the process, as in a crash."""
        self._process.kill()
        self.end()

    def end(self):
        """Stop the process and wait for its end."""
        self._process.stdin.close()
        self._process.wait(GUARD)
        self._reader.join(GUARD)
        self._process.stdout.close()

    def _read(self, lines, urls):
        for line in lines:
            if line.startswith("http"):
                urls.put(line.strip())
            else:
                self._heard(line)
        urls.put(None)
