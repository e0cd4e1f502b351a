"""The thread of a store that renews its leases, and sends and hears notices.

One thread and one connection for all names of a store object, so that a slow handler does not lose its lease, and
50 replicas with a hundred names need 50 connections for this. It works in rounds: renew all leases in one
statement, send the notices that are due, wait for the next round or for a notice.

A connection through a pooler in transaction mode, such as PgBouncer's, hears no notice and gives no error. So the
thread sends itself a notice after each connect, and later after silence.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import psycopg

from push_to_poll_client._exceptions import StoreError
from push_to_poll_client._log import ConsumerLog
from push_to_poll_client._types import Push
from push_to_poll_client._validation import describe
from push_to_poll_client.stores._postgres.connection import Connection, Database, wait_readable
from push_to_poll_client.stores._postgres.errors import describe_error, store_error, was_answered
from push_to_poll_client.stores._postgres.lease import Lease, lease_end
from push_to_poll_client.stores._postgres.notices import Kind, Notice, decode_notice, merge_pushes

_log = ConsumerLog(logging.getLogger("push_to_poll_client"))

# `%b` for arrays of bytes: as text, psycopg writes them for a string literal, which is wrong for a role with
# standard_conforming_strings=off.
_RENEW = """
    UPDATE {s}.lease SET until = clock_timestamp() + make_interval(secs => %(lease)s)
    FROM unnest(%(consumers)s::bigint[], %(owners)b::bytea[]) AS mine(id, bytes)
    WHERE consumer = mine.id AND owner = mine.bytes AND until > clock_timestamp()
    RETURNING consumer, owner, wanted
"""

_FREE = """
    UPDATE {s}.lease SET until = 'epoch', owner = NULL, wanted = false
    WHERE consumer = %(id)s AND owner = %(owner)s
"""
# Not '-infinity': PostgreSQL 16 and older cannot subtract from it.

_NOTIFY = "SELECT pg_notify(%(channel)s, payload) FROM unnest(%(payloads)s::text[]) AS payload"

_WAKE_INTERVAL = 0.02
"""Seconds between two wakes that are forwarded for one name."""

_MAX_WAKES = 10_000
"""Most names with a wake that waits to be sent. Wakes of more names are dropped: each is a hint."""

_LINGER = 5.0
"""Seconds for which the thread goes on without leases and waiting replicas."""

_ECHO_TIMEOUT = 5.0
"""Seconds after which the store counts as deaf if it did not hear its own notice."""

_TEST_INTERVAL = 60.0
"""Seconds without a notice after which the store tests again whether it hears itself."""


def free_name(database: Database, connection: Connection, lease: Lease) -> None:
    """End a lease at the server, if it is still this owner's, and tell the replicas that stand by."""
    database.execute_alone(connection, _FREE, {"id": lease.consumer, "owner": lease.owner})
    try:
        send_notices(database, connection, [Notice(Kind.FREED, lease.digest)])
    except psycopg.Error as error:
        if not was_answered(error, connection):  # else the server refuses notices, and the name is free
            raise


def send_notices(database: Database, connection: Connection, notices: Sequence[Notice]) -> None:
    """Send notices to all replicas, in a statement of their own."""
    payloads = [notice.encode() for notice in notices]
    connection.execute(_NOTIFY, {"channel": database.schema, "payloads": payloads})


class Housekeeping:
    """Renews leases in a thread, which runs while there are leases or replicas that wait.

    Args:
        database: Where the connection of the thread goes.
        lease: Length of a lease in seconds.
        clock: The clock of leases.
        on_end: Called when the thread ends, because it has nothing to do or was stopped.
    """

    def __init__(
        self, database: Database, lease: float, clock: Callable[[], float], on_end: Callable[[], None]
    ) -> None:
        self.hears: bool | None = None  # True if notices arrive; None if not known
        self._database = database
        self._lease = lease
        self._clock = clock
        self._on_end = on_end
        self._lock = threading.Lock()  # never taken by a finalizer, which may interrupt any line
        self._thread: threading.Thread | None = None
        self._bell: tuple[socket.socket, socket.socket] | None = None
        self._leases: set[Lease] = set()
        self._waiting: dict[object, tuple[bytes, Callable[[], object]]] = {}
        self._outgoing: dict[bytes, Push | None] = {}
        self._sending: dict[bytes, Push | None] = {}
        self._all_sent = threading.Condition(self._lock)
        self._sent: dict[bytes, float] = {}  # time of the last wake of each name, for the last interval
        self._used_at = clock()
        self._must_stop = False
        self._has_failed = False  # and it was logged, perhaps by an earlier thread
        self._next_renewal = -1.0
        self._test = b""  # content of the last test notice
        self._test_sent: float | None = None  # time of a test notice that was not heard yet
        self._tested_at = 0.0

    # From any thread

    def add(self, lease: Lease) -> None:
        """Renew a lease from now on."""
        with self._lock:
            self._leases.add(lease)
            self._must_stop = False  # a thread that has not noticed it yet goes on
        self.poke()

    def remove(self, lease: Lease) -> None:
        """Stop renewing a lease."""
        with self._lock:
            self._leases.discard(lease)
            self._used_at = self._clock()  # the connection of the release is given back before the thread ends

    @contextmanager
    def waiting(self, digest: bytes, call: Callable[[], object]) -> Iterator[None]:
        """Call a function, within the block, when the name may be free or the server cannot be reached."""
        key = object()
        with self._lock:
            self._waiting[key] = digest, call
        try:
            self.poke()
            yield
        finally:
            with self._lock:
                del self._waiting[key]
                self._used_at = self._clock()

    def forward(self, digest: bytes, push: Push | None) -> None:
        """Send a wake to the owner of a name, soon. Never blocks for long, and never raises."""
        with self._lock:
            self._put(digest, push)
        with suppress(RuntimeError):  # the thread cannot be started
            self.poke()

    def _put(self, digest: bytes, push: Push | None) -> None:
        if digest in self._outgoing:
            self._outgoing[digest] = merge_pushes(self._outgoing[digest], push)
        elif len(self._outgoing) < _MAX_WAKES:
            self._outgoing[digest] = push

    @property
    def has_wakes(self) -> bool:
        """True if wakes wait to be sent."""
        with self._lock:
            return bool(self._outgoing or self._sending)

    def wait_until_sent(self, timeout: float) -> None:
        """Wait until all wakes are sent, for at most this number of seconds."""
        with self._lock:
            self._all_sent.wait_for(lambda: not (self._outgoing or self._sending), timeout)

    def poke(self) -> None:
        """Let the thread look for something to do, and start it if it does not run."""
        with self._lock:
            self._used_at = self._clock()
            if self._thread is None:
                self._must_stop = False
                self._bell = socket.socketpair()
                for end in self._bell:
                    end.setblocking(False)  # noqa: FBT003
                name = f"PostgresStore {self._database.schema}"
                self._thread = threading.Thread(target=self._run, args=(self._bell[0],), name=name, daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # the interpreter is shutting down, or there are too many threads
                    self._thread = None
                    self._close_bell()
                    raise
            else:
                self.ring()

    def ring(self) -> None:
        """Wake the thread. Takes no lock, so a finalizer can call it."""
        if (bell := self._bell) is not None:
            with suppress(OSError):  # full, and then the thread will look anyway, or closed
                bell[1].send(b"\0")

    def stop(self) -> None:
        """Stop the thread and close its connection. Leases that are left run out."""
        with self._lock:
            thread, self._must_stop = self._thread, True
            self.ring()
        if thread is not None and thread is not threading.current_thread():
            thread.join(self._database.timeout)

    # In the thread

    def _run(self, bell: socket.socket) -> None:
        while not self._is_done():
            try:
                with self._connected() as connection:
                    self._after_connect(connection)
                    self._serve(connection, bell)
                    break
            except StoreError as error:
                if not self._has_failed:
                    _log.warning("leases are not renewed and no wakes heard, retrying: %s", describe(error))
                self._has_failed = True
            except Exception as error:  # noqa: BLE001  # else leases would end without a word
                if not self._has_failed:
                    _log.error("the thread that renews leases failed, retrying", exc_info=error)
                self._has_failed = True
            self._tell_all()
            self._pause(bell, self._lease / 12)
        self._on_end()

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        connection = self._database.connect()
        try:
            yield connection
        except psycopg.Error as error:
            raise store_error(self._database.where, error) from error
        finally:
            connection.close()

    def _after_connect(self, connection: Connection) -> None:
        connection.deadline = time.monotonic() + self._lease / 3
        # Not psycopg's own handler, which cannot decode every payload of a database in SQL_ASCII.
        connection.pgconn.notify_handler = lambda notify: self._hear(notify.extra.decode("ascii", "replace"))
        connection.execute(f'LISTEN "{self._database.schema}"'.encode())
        # Notices before this moment may have been missed.
        for lease in self._all_leases():
            lease.pass_on(None)
        self._call_waiting(None)
        self._test_hearing()

    def _serve(self, connection: Connection, bell: socket.socket) -> None:
        """Renew, send and hear until nothing is left to do. Raises if the connection fails."""
        while not self._is_done():
            connection.deadline = time.monotonic() + self._lease / 3
            now = self._clock()
            if now >= self._next_renewal:
                self._renew(connection)
            self._free_dropped(connection)
            self._send_wakes(connection)
            self._check_hearing()
            if self._has_failed:
                self._has_failed = False
                _log.info("leases are renewed and wakes heard again")
            timeout = max(0.0, min(self._next_renewal - self._clock(), self._seconds_to_next_wake()))
            readable = wait_readable([connection.fileno(), bell.fileno()], timeout)
            self._read_bell(bell)
            if connection.fileno() in readable:
                connection.pgconn.consume_input()
                while notify := connection.pgconn.notifies():
                    self._hear(notify.extra.decode("ascii", "replace"))

    def _renew(self, connection: Connection) -> None:
        leases = [lease for lease in self._all_leases() if self._is_to_be_renewed(lease)]
        requested = self._clock()
        self._next_renewal = requested + self._lease / 3
        if not leases:
            return
        values = {
            "lease": self._lease,
            "consumers": [lease.consumer for lease in leases],
            "owners": [lease.owner for lease in leases],
        }
        rows = self._database.execute_alone(connection, _RENEW, values).fetchall()
        # By the owner too: a name that this process lost may have been claimed by another session of this process.
        renewed = {(consumer, owner): wanted for consumer, owner, wanted in rows}
        for lease in leases:
            wanted = renewed.get((lease.consumer, lease.owner))
            if wanted is None:
                self.remove(lease)
                lease.end()
                continue
            lease.ends = lease_end(requested, self._lease)
            if wanted:
                lease.want()

    def _is_to_be_renewed(self, lease: Lease) -> bool:
        has_ended = self._clock() >= lease.ends
        if has_ended or lease.lost:
            lease.tell_loss()
        if has_ended:
            self.remove(lease)
        return not has_ended and lease.may_be_renewed

    def _free_dropped(self, connection: Connection) -> None:
        """Free the names whose sessions were dropped without a release."""
        with self._lock:  # one that `again()` has removed has the same owner as its successor
            dropped = [lease for lease in self._leases if lease.is_dropped]
            self._leases.difference_update(dropped)
        for lease in dropped:
            free_name(self._database, connection, lease)

    def _send_wakes(self, connection: Connection) -> None:
        now = self._clock()
        self._sent = {digest: at for digest, at in self._sent.items() if now - at < _WAKE_INTERVAL}
        with self._lock:
            due = {digest: push for digest, push in self._outgoing.items() if digest not in self._sent}
            for digest in due:
                del self._outgoing[digest]
            self._sending = due
        if due:
            notices = [Notice(Kind.WAKE, digest, push) for digest, push in due.items()]
            try:
                self._send(connection, notices)
                self._sent.update(dict.fromkeys(due, self._clock()))
                due = {}
            finally:
                with self._lock:
                    for digest, push in due.items():  # not sent, or not answered: a wake may come twice
                        self._put(digest, push)
                    self._sending = {}
                    self._all_sent.notify_all()

    def _seconds_to_next_wake(self) -> float:
        with self._lock:
            has_waiting = bool(self._outgoing)
        return _WAKE_INTERVAL if has_waiting else self._lease

    def _hear(self, payload: str) -> None:
        notice = decode_notice(payload)
        if notice is None:
            return
        self._tested_at = self._clock()
        if notice.kind is Kind.TEST:
            if notice.digest == self._test:
                if self.hears is False:
                    _log.info("wakes that other replicas forward are heard again")
                self.hears, self._test_sent = True, None
            return
        if notice.kind is Kind.FREED:
            self._call_waiting(notice.digest)
        for lease in self._all_leases():
            if lease.digest == notice.digest:
                if notice.kind is Kind.WAKE:
                    lease.pass_on(notice.push)
                elif notice.kind is Kind.WANTED:
                    self._next_renewal = -1.0  # the row tells whether this owner is meant

    def _test_hearing(self) -> None:
        self._test, self._test_sent = os.urandom(16), self._clock()
        self._tested_at = self._test_sent
        # Through a pooler a connection may hear its own notices and no others. So another connection sends it.
        try:
            with self._connected() as other:
                other.deadline = time.monotonic() + self._lease / 3
                send_notices(self._database, other, [Notice(Kind.TEST, self._test)])
        except StoreError:  # as with too many connections: not known, and tested again later
            self._test_sent = None

    def _send(self, connection: Connection, notices: Sequence[Notice]) -> None:
        """Send notices. If the server refuses, for example because its queue is full, the leases go on."""
        try:
            send_notices(self._database, connection, notices)
        except psycopg.Error as error:
            if not was_answered(error, connection):
                raise
            if self.hears is not False:
                _log.warning(
                    "%s: the server refuses notices: %s; a push at another replica waits for the next poll",
                    self._database.where,
                    describe_error(error),
                )
            self.hears, self._test_sent = False, None

    def _check_hearing(self) -> None:
        now = self._clock()
        if self._test_sent is not None and now - self._test_sent > _ECHO_TIMEOUT:
            if self.hears is not False:
                _log.warning(
                    "%s: notices do not arrive, probably because of a pooler such as PgBouncer: a push at another "
                    "replica waits for this owner's next poll; give PostgresStore a listen_conninfo= that leads "
                    "to the server itself",
                    self._database.where,
                )
            self.hears, self._test_sent = False, None
        if now - self._tested_at > _TEST_INTERVAL:
            self._test_hearing()

    def _tell_all(self) -> None:
        """Tell consumers of leases that have run out, and waiting replicas that the server cannot be reached."""
        for lease in self._all_leases():
            if lease.lost:
                lease.tell_loss()
        self._next_renewal = -1.0
        self._call_waiting(None)

    def _call_waiting(self, digest: bytes | None) -> None:
        """Call the replicas that wait for a name, or for any name."""
        with self._lock:
            calls = [call for name, call in self._waiting.values() if digest is None or name == digest]
        for call in calls:
            call()

    def _all_leases(self) -> Sequence[Lease]:
        with self._lock:
            return [*self._leases]

    def _pause(self, bell: socket.socket, seconds: float) -> None:
        deadline = self._clock() + seconds
        while not self._must_stop and (left := deadline - self._clock()) > 0:
            wait_readable([bell.fileno()], left)
            self._read_bell(bell)

    def _read_bell(self, bell: socket.socket) -> None:
        with suppress(OSError):
            while bell.recv(4096):
                pass

    def _is_done(self) -> bool:
        """Return True if the thread ends now; another one is started when there is something to do."""
        with self._lock:
            is_used = self._leases or self._waiting or self._outgoing
            if self._must_stop or (not is_used and self._clock() - self._used_at > _LINGER):
                self._thread = None
                self._close_bell()
                return True
            return False

    def _close_bell(self) -> None:
        if self._bell is not None:
            bell, self._bell = self._bell, None
            for end in bell:
                end.close()
