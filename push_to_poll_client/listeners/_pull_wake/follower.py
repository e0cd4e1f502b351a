"""WHAT A WAKE STREAM SAYS (PROTOCOL.md §7.2): followed from its end on as server-sent events; each wake is claimed.

The order is what loses nothing. As long as a wake is neither claimed nor given back the server writes no other one,
whatever is appended. So it is claimed first; then the consumer is woken, who thus reads at least what the claim
covers; then the claim is given back, as far as it reaches and no further, and the server writes a wake for all that
came later. A claim that another worker has, or that finds nothing new, was answered after the wake was written: had
it not been taken before, it would be ours. So all workers of a subscription are woken, whoever has the claim.

    append A    wake 1    claim [A]    consumer woken    append B    done [A]    wake 2    claim [B] ...

On each connect the stream is opened first and then claimed: a wake before that is found by the claim, a later one
is in the stream. What was claimed and could not be given back is given back then; if it is not, the lease runs out,
and the server writes a wake for what is new.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import msgspec

from push_to_poll_client._types import Push
from push_to_poll_client.listeners._asking import ANSWER_VERDICTS, Asker
from push_to_poll_client.listeners._failure import Failure
from push_to_poll_client.listeners._http_failures import http_failure_of
from push_to_poll_client.listeners._pull_wake.claims import Claimer
from push_to_poll_client.listeners._pull_wake.pace import Pace
from push_to_poll_client.listeners._reconnecting import ReconnectingListener
from push_to_poll_client.listeners._sse_connection import EventStream
from push_to_poll_client.listeners._sse_parser import ServerSentEvent
from push_to_poll_client.listeners._subscriptions.stream_subscription import JSON
from push_to_poll_client.listeners.sse import SSEListener

__all__ = ["WakeStream"]
