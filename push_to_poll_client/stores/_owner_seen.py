"""Which process owns a file, asked by somebody who does not want it?

Nothing is locked to find out: that would keep out a consumer which starts at the same instant. Linux lists its
locks; elsewhere the owner is the process whose id is in the lock file, if there is such a process.
"""

import os
import re
import sys
from pathlib import Path

__all__ = ["owner_of"]

_LOCKS = Path("/proc/locks")  # proc_locks(5)
_LOCK = re.compile(r"^\d+: FLOCK +ADVISORY +WRITE +(\d+) (\w+:\w+):(\d+) ", re.MULTILINE)


def owner_of(path: str) -> int | None:
    """The process that owns a file, as far as this one can see; `None`: nobody.

    One in another container cannot be seen.

    Args:
        path: The file that is owned, absolute, links followed; see `OwnerLock`.
    """
    try:
        with Path(f"{path}.lock").open("rb") as file:  # to close it again drops nobody's flock
            written, place = file.read(20), os.fstat(file.fileno())
    except OSError:
        return None
    process = int(written) if written.isdigit() else 0
    try:
        return _locked_by(_LOCKS.read_text(), place, process)
    except OSError:
        return process if process and _runs(process) else None


def _locked_by(locks: str, place: os.stat_result, process: int) -> int | None:
    """Some file systems tell another device here than to `stat`: there the written process decides."""
    device = f"{os.major(place.st_dev):02x}:{os.minor(place.st_dev):02x}"
    for holder, where, inode in _LOCK.findall(locks):
        if int(inode) == place.st_ino and (where == device or int(holder) == process):
            return int(holder)
    return None


if sys.platform == "win32":  # pragma: no cover  # the tests run on POSIX

    def _runs(_: int) -> bool:
        return True  # there is no asking: os.kill() ends the process, whatever the signal

else:

    def _runs(process: int) -> bool:
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:  # it is there, and another user's
            return True
        return True
