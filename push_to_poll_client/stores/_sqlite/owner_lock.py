"""Ownership of a database file: at most one process uses it as its store.

The owner holds a lock of the operating system on a second file, `<path>.lock`. The lock ends with the process,
even if the process is killed. The lock file is never deleted: deleting it could remove a file that another process
has just locked. The file contains the owner's process id, for messages only.

In a shared directory, an attacker can replace the lock file by a link to another file. So links are not followed,
only a regular file with one name is used, and a file with anything but a process id is not changed.

`lock_holder` finds the owner without taking the lock, so it never keeps out a consumer that is starting. Linux
lists its locks; elsewhere the owner is the process named in the lock file, if that process exists.
"""

import contextlib
import os
import re
import stat
import sys
from pathlib import Path

from push_to_poll_client._exceptions import StoreBusy, StoreError

_MAX_PROCESS_ID = 20
"""Digits of the longest process id."""


def _open_lock_file(path: str, flags: int) -> int:
    """Open the lock file of `path` without following links."""
    # O_NONBLOCK: else opening a FIFO waits for its other end. Windows has neither flag, and no links without a
    # privilege.
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(f"{path}.lock", flags, 0o600)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    raise StoreError(_not_a_lock_file(path))


def _not_a_lock_file(path: str) -> str:
    return (
        f"{path}: {path}.lock is not a lock file: it is a link or a special file, or its content is not a process "
        "id. Nothing was changed; check its origin, then delete it or choose another file"
    )


_PROC_LOCKS = Path("/proc/locks")  # proc_locks(5)
_PROC_LOCK_LINE = re.compile(r"^\d+: FLOCK +ADVISORY +WRITE +(\d+) (\w+:\w+):(\d+) ", re.MULTILINE)


def lock_holder(path: str) -> int | None:
    """Return the process that owns a file, or None. Processes of other containers are not visible."""
    try:
        # Closing it drops no flock of another descriptor.
        with open(_open_lock_file(path, os.O_RDONLY), "rb") as file:
            written, stats = file.read(_MAX_PROCESS_ID), os.fstat(file.fileno())
    except (OSError, StoreError):
        return None
    process = int(written) if written.isdigit() else 0
    try:
        return _locked_by(_PROC_LOCKS.read_text(), stats, process)
    except OSError:
        return process if process and _runs(process) else None


def _locked_by(locks: str, stats: os.stat_result, process: int) -> int | None:
    """Find the holder of a lock file in the text of /proc/locks."""
    device = f"{os.major(stats.st_dev):02x}:{os.minor(stats.st_dev):02x}"
    for holder, locked_device, inode in _PROC_LOCK_LINE.findall(locks):
        # Some file systems list another device here than `stat` returns: there the written process id decides.
        if int(inode) == stats.st_ino and (locked_device == device or int(holder) == process):
            return int(holder)
    return None


if sys.platform == "win32":  # pragma: no cover  # the tests run on POSIX
    import msvcrt

    def _runs(_: int) -> bool:
        return True  # nothing asks safely: os.kill() ends the process with any signal

    # Windows locks bytes against reading too, so the locked byte lies far after the process id.
    _LOCKED_BYTE = 1 << 30

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(error.errno, error.strerror) from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _runs(process: int) -> bool:
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:  # the process exists and belongs to another user
            return True
        return True

    # flock, not lockf: a flock belongs to this descriptor, so that a second lock within the process is refused
    # too, and closing another descriptor of the file does not drop it.
    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    # Explicitly, not by closing alone: a forked child may hold the descriptor too.
    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


_held_locks: set["OwnerLock"] = set()


def _close_in_child() -> None:
    """Close the lock files in a forked child, where they would outlive the parent's lock."""
    # Only close, never unlock: the lock is the parent's.
    while _held_locks:
        os.close(_held_locks.pop()._descriptor)  # noqa: SLF001  # a class of this module


if sys.platform != "win32":  # pragma: no branch  # the tests run on POSIX
    os.register_at_fork(after_in_child=_close_in_child)


class OwnerLock:
    """Ownership of `path` until `release()` or the end of the process. Not inherited by a forked child."""

    def __init__(self, path: str) -> None:
        try:
            # Not inherited by programs that this one starts (PEP 446).
            self._descriptor = _open_lock_file(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            # Of a link the error is ELOOP, of a FreeBSD EMLINK; of a directory EISDIR, of a socket ENXIO.
            with contextlib.suppress(OSError):
                if not stat.S_ISREG(os.lstat(f"{path}.lock").st_mode):
                    raise StoreError(_not_a_lock_file(path)) from None
            raise StoreError(
                f"{path}: cannot create the lock file {path}.lock: {error.strerror}; choose a file in a directory "
                "that exists and is writable"
            ) from error
        try:
            self._acquire(path)
        except BaseException:
            os.close(self._descriptor)
            raise
        _held_locks.add(self)

    def stats(self) -> os.stat_result:
        """Return the stats of the locked file, even if it was moved."""
        return os.fstat(self._descriptor)

    def _acquire(self, path: str) -> None:
        try:
            _lock(self._descriptor)
        except BlockingIOError as error:
            owner = self._describe_owner()
            raise StoreBusy(
                f"{path} is in use by {owner}; stop it, or choose another file", owner=owner
            ) from error
        except OSError as error:
            raise StoreError(
                f"{path}: cannot lock {path}.lock: {error.strerror}; choose a file on a local disk"
            ) from error
        # NULs are what the crash of a machine leaves of a process id.
        if os.read(self._descriptor, _MAX_PROCESS_ID + 1).strip(b"\0 0123456789") or (
            os.fstat(self._descriptor).st_size > _MAX_PROCESS_ID
        ):
            raise StoreError(_not_a_lock_file(path))
        with contextlib.suppress(OSError):  # a full disk: the process id is for the message only
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, str(os.getpid()).encode())

    def _describe_owner(self) -> str:
        process = os.read(self._descriptor, _MAX_PROCESS_ID).decode("ascii", "replace")
        if process == str(os.getpid()):
            return "another store object of this process (share one between consumers)"
        return f"process {process}" if process.isdecimal() else "another process"

    def release(self) -> None:
        """Release the lock. Does nothing in a forked child."""
        if self in _held_locks:
            _held_locks.remove(self)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            _unlock(self._descriptor)
            os.close(self._descriptor)
