"""Which process owns a file? The one that holds an operating system's lock on a second file beside it.

The lock goes with the process, also when it is killed, so it never has to be broken by hand or by age. The lock
file stays: whoever deletes lock files deletes, sooner or later, the one that somebody just locked. It holds the
owner's process id, for the message only; the decision is the operating system's.
"""

import contextlib
import os
import sys

from push_to_poll_client._exceptions import StoreBusy, StoreError

__all__ = ["OwnerLock"]

if sys.platform == "win32":  # pragma: no cover  # the tests run on POSIX
    import msvcrt

    # Windows locks bytes against reading too, so the locked one lies far behind the process id.
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

    # flock, not lockf: it belongs to this descriptor, so that a second lock within the process is refused too, and
    # no other descriptor of the file drops it when it is closed.
    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    # Explicitly, not by closing alone: a forked child may hold the descriptor too.
    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


_held: set["OwnerLock"] = set()


def _leave_to_parent() -> None:
    """Close in a forked child what would outlive the parent's lock. Never unlock: the lock is the parent's."""
    while _held:
        os.close(_held.pop()._descriptor)  # noqa: SLF001  # one module, two halves


if sys.platform != "win32":  # pragma: no branch  # likewise
    os.register_at_fork(after_in_child=_leave_to_parent)


class OwnerLock:
    """The right to `path`, held until `release()` or the end of the process. A forked child does not inherit it.

    Args:
        path: The file to own, which is not touched; the lock is on `path` with `.lock` after it.

    Raises:
        StoreBusy: Another process holds it, or another lock object in this one.
        StoreError: The lock file cannot be made or locked.
    """

    def __init__(self, path: str) -> None:
        try:
            # Not inherited by programs that this one starts (PEP 446).
            self._descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot make the lock file {path}.lock: {error.strerror}; name a file in a directory "
                "that exists and may be written"
            ) from error
        try:
            self._acquire(path)
        except BaseException:
            os.close(self._descriptor)
            raise
        _held.add(self)

    def _acquire(self, path: str) -> None:
        try:
            _lock(self._descriptor)
        except BlockingIOError as error:
            raise StoreBusy(f"{path} is in use by {self._owner()}; stop it, or name another file") from error
        except OSError as error:
            raise StoreError(
                f"{path}: cannot lock {path}.lock: {error.strerror}; name a file on a local disk"
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the process id is for the message only
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, str(os.getpid()).encode())

    def _owner(self) -> str:
        process = os.read(self._descriptor, 20).decode("ascii", "replace")
        if process == str(os.getpid()):
            return "another store object of this process (share one between consumers)"
        return f"process {process}" if process.isdecimal() else "another process"

    def release(self) -> None:
        """Give the right back. In a forked child, which never had it, nothing happens."""
        if self in _held:
            _held.remove(self)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            _unlock(self._descriptor)
            os.close(self._descriptor)
