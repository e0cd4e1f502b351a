"""Other processes on Linux and macOS: their end and their memory."""

import resource
import time
from pathlib import Path

import psutil

from tests.support.forms import GUARD

CLEAR_REFS = Path("/proc/self/clear_refs")
"""Exists only on Linux. Writing "5" resets the peak of this process's memory (proc_pid_clear_refs(5))."""


def has_ended(process):
    """Return True if a `psutil.Process` is gone, or a zombie whose parent has not waited for it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for_end(*processes):
    """Wait until processes have ended, even if they are not children of this one."""
    # `psutil.wait_procs` would wait longer: until their parents have collected the zombies.
    ends = time.monotonic() + GUARD
    while running := [process for process in processes if not has_ended(process)]:
        assert time.monotonic() < ends, f"still running: {running}"
        time.sleep(0.002)


def reset_peak_memory():
    """Measure `peak_memory` from now on. On macOS it counts from the start of the process, even a forked one."""
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")


def peak_memory():
    """Return the most bytes of memory that this process has used."""
    if not CLEAR_REFS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # On Linux `ru_maxrss` begins with the peak of the parent.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def resident_memory():
    """Return the bytes of memory that this process uses now."""
    return psutil.Process().memory_info().rss
