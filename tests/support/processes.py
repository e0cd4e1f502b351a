"""Other processes on Linux and macOS: their end and their memory."""

import resource
import time
from pathlib import Path

import psutil

from tests.support.forms import GUARD

PEAK = Path("/proc/self/clear_refs")
"""Exists on Linux. Writing "5" to it resets the peak of this process's memory (proc_pid_clear_refs(5))."""


def has_ended(process):
    """Return True if a `psutil.Process` is gone, or a zombie whose parent has not waited for it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for_end(*processes):
    """Wait for processes that need not be children of this one. `psutil` would also wait for their parents."""
    ends = time.monotonic() + GUARD
    while running := [process for process in processes if not has_ended(process)]:
        assert time.monotonic() < ends, f"still running: {running}"
        time.sleep(0.002)


def reset_peak_memory():
    """Let `peak_memory` begin again. On macOS it begins with the process, also with a forked one."""
    if PEAK.exists():
        PEAK.write_text("5")


def peak_memory():
    """Return the most bytes of memory that this process has used."""
    if not PEAK.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # On Linux `ru_maxrss` begins with the peak of the parent.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def resident_memory():
    """Return the bytes of memory that this process uses now."""
    return psutil.Process().memory_info().rss
