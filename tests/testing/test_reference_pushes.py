"""Webhooks and long polls of the reference server, on real sockets, with the faults of `Faults`."""

import json
from contextlib import contextmanager

import anyio
import httpx
import pytest
import standardwebhooks
from anyio.to_thread import run_sync
from websockets.sync.client import connect

from push_to_poll_client import testing
from push_to_poll_client.testing import ReferenceApp, serve_in_thread
from tests.support.channels import Raw
from tests.support.forms import GUARD

SECRET, OTHER = "whsec_c2VjcmV0IG9mIGEgdGVzdA==", "whsec_YW5vdGhlciBzZWNyZXQ="
FIRST, SECOND, THIRD = (f"{n:012d}" for n in (1, 2, 3))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture
def served():
    with serve_in_thread(webhook_retries=(0.01, 0.01)) as server:
        yield server


class Receiver(Raw):
    """A webhook that records the headers and body of each request, and answers with each status in turn.

    Args:
        statuses: The last one repeats.
    """

    def __init__(self, *statuses):
        super().__init__(self._treat_one)
        self.requests = []
        self._statuses = list(statuses or [200])

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/hooks"

    def _treat_one(self, accepted, _):
        lines = [line.partition(": ") for line in self._head(accepted).split("\r\n")[1:]]
        headers = {name.lower(): value for name, _, value in lines}
        self.requests.append((headers, accepted.recv(int(headers["content-length"]))))
        status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        if status is not None:
            answer = f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            accepted.sendall(answer.encode())
        accepted.close()

    def _head(self, accepted):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += accepted.recv(1)
        return head.decode().strip()

    @property
    def cursors(self):
        return [json.loads(body)["cursor"] for _, body in self.requests]

    @property
    def ids(self):
        return [headers["webhook-id"] for headers, _ in self.requests]


def over(served, count):
    """Wait until so many webhooks were answered or lost."""
    served.stats.wait_for(lambda stats: sum(stats.webhooks.values()) == count)


# Webhooks


def test_each_publication_is_one_webhook_that_the_official_library_verifies(served):
    with Receiver() as hooks:
        assert httpx.post(
            f"{served.base_url}/webhooks", json={"url": hooks.url, "secret": SECRET}, timeout=GUARD
        ).json() == [hooks.url]
        served.publish(2)
        over(served, 1)
        [(headers, body)] = hooks.requests
        assert standardwebhooks.Webhook(SECRET).verify(body, headers) == {"cursor": SECOND}
        assert headers["content-type"] == "application/json"
        assert (served.stats.webhooks, served.stats.pushes_sent) == ({200: 1}, 1)
        assert served.pushes[0].sent == 1


def test_each_receiver_gets_webhooks_signed_with_its_secret_until_it_is_removed(served):
    with Receiver() as one, Receiver() as other:
        served.send_webhooks(one.url, SECRET)
        assert served.send_webhooks(other.url, SECRET) == [one.url, other.url]
        served.send_webhooks(other.url, OTHER)
        served.publish()
        over(served, 2)
        assert served.send_webhooks(one.url, None) == [other.url]
        assert served.send_webhooks(one.url, None) == [other.url]
        served.publish()
        over(served, 3)
        assert (one.cursors, other.cursors) == ([FIRST], [FIRST, SECOND])
        headers, body = other.requests[0]
        standardwebhooks.Webhook(OTHER).verify(body, headers)


@pytest.mark.parametrize(
    ("url", "secret", "seen"),
    [
        ("ftp://127.0.0.1/", SECRET, "must start with http"),
        ("http://", SECRET, "must start with http"),
        ("http://127.0.0.1/", "whsec_", "empty"),
        ("http://127.0.0.1/", "whsec_?", "base64"),
        ("http://127.0.0.1/", 7, "secret"),
    ],
)
def test_a_webhook_with_an_invalid_url_or_secret_is_refused(served, url, secret, seen):
    refused = httpx.post(f"{served.base_url}/webhooks", json={"url": url, "secret": secret}, timeout=GUARD)
    assert refused.status_code == 400
    assert seen.lower() in refused.text.lower()


def test_a_webhook_is_retried_with_the_same_id_until_it_is_accepted(served):
    with Receiver(500, None, 200) as hooks:
        served.send_webhooks(hooks.url, SECRET)
        served.publish()
        over(served, 3)
        assert hooks.ids == [f"push_{FIRST}"] * 3
        assert (served.stats.webhooks, served.stats.webhooks_given_up) == ({500: 1, 0: 1, 200: 1}, 0)


def test_a_webhook_is_not_sent_again_after_its_last_retry_failed(served):
    with Receiver(302) as hooks:
        served.send_webhooks(hooks.url, SECRET)
        served.publish()
        served.stats.wait_for(lambda stats: stats.webhooks_given_up)
        assert served.stats.webhooks == {302: 3}


def test_the_official_library_refuses_a_forged_webhook(served):
    served.faults.forge_next = 1
    with Receiver(401, 200) as hooks:
        served.send_webhooks(hooks.url, SECRET)
        served.publish()
        over(served, 2)
        forged, signed = hooks.requests
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(SECRET).verify(forged[1], forged[0])
        standardwebhooks.Webhook(SECRET).verify(signed[1], signed[0])


def test_webhooks_are_dropped_and_repeated_like_pushes_on_other_channels(served):
    served.faults.set(drop_next=1, push_twice_next=2)
    with Receiver() as hooks, connect(served.push_url, open_timeout=GUARD) as socket:
        served.stats.wait_for(lambda stats: stats.websockets_open)
        served.send_webhooks(hooks.url, SECRET)
        served.publish()
        served.publish()
        over(served, 2)
        served.publish()
        over(served, 3)
        assert hooks.cursors == [SECOND, SECOND, THIRD]
        assert [json.loads(socket.recv(GUARD))["cursor"] for _ in range(3)] == [SECOND, SECOND, THIRD]
    assert [(push.sent, push.times) for push in served.pushes] == [(0, 2), (2, 2), (2, 1)]
    assert served.stats.pushes_sent == 6


def test_no_webhook_is_sent_while_channels_are_half_open(served):
    with Receiver() as hooks:
        served.send_webhooks(hooks.url, SECRET)
        served.faults.half_open = True
        served.publish()
        # The answer comes when the publication is complete.
        httpx.post(f"{served.base_url}/faults", json={"half_open": False}, timeout=GUARD)
        served.close_websockets()
        served.publish()
        over(served, 1)
        assert hooks.cursors == [SECOND]


def test_webhooks_continue_after_a_restart_without_publications_from_while_it_was_stopped(served):
    with Receiver() as hooks:
        served.stop()
        served.send_webhooks(hooks.url, SECRET)
        served.publish()
        for _ in range(2):
            served.restart()
            served.publish()
            over(served, len(served.pushes) - 1)
        assert hooks.cursors == [SECOND, THIRD]
        served.send_webhooks(hooks.url, None)
        served.restart()
        served.publish()
    assert served.pushes[-1].sent == 0


# Long polls


@contextmanager
def held(served, **query):
    """Start a long poll that the server holds; its answer comes later."""
    with anyio.from_thread.start_blocking_portal() as portal:
        answer = portal.start_task_soon(run_sync, lambda: changes(served, **query))
        served.stats.wait_for(lambda stats: stats.long_polls_held == 1)
        yield answer


def changes(served, **query):
    return httpx.get(served.changes_url, params=query, timeout=GUARD).json()


def test_a_long_poll_is_answered_at_once_when_there_is_something_new(served):
    served.publish(2)
    assert changes(served, after=FIRST) == {"changes": True, "cursor": SECOND}
    assert changes(served, after="") == {"changes": True, "cursor": SECOND}


def test_a_long_poll_is_answered_by_the_next_publication(served):
    served.publish()
    with held(served, after=FIRST) as answer:
        served.publish()
        assert answer.result(GUARD) == {"changes": True, "cursor": SECOND}
    assert (served.stats.long_polls, served.stats.long_polls_held, served.stats.pushes_sent) == (1, 0, 1)


def test_a_long_poll_without_after_waits_for_the_next_publication(served):
    served.publish()
    assert changes(served, wait=0.01) == {"changes": False, "cursor": FIRST}
    with held(served) as answer:
        served.publish()
        assert answer.result(GUARD) == {"changes": True, "cursor": SECOND}


@pytest.mark.parametrize("wait", ["0", "0.02", "soon", "-1", "1.2.3"])
def test_a_long_poll_without_changes_ends_after_its_wait(served, wait):
    assert changes(served, wait=wait) == {"changes": False, "cursor": ""}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_dropped_push_does_not_answer_a_long_poll_before_its_wait_ends(backend):
    app = ReferenceApp()
    app.faults.drop_next = 1
    said = []

    async def send(message):
        said.append((anyio.current_time(), message.get("body")))

    async def main():
        scope = {"type": "http", "method": "GET", "path": "/changes", "headers": [], "query_string": b"wait=30"}
        async with anyio.create_task_group() as tasks:
            began = anyio.current_time()
            tasks.start_soon(app, scope, anyio.sleep_forever, send)
            await anyio.sleep(10)
            app.publish()
        return [(at - began, body) for at, body in said if body]

    name, options = testing.virtual_time(backend)
    [(at, body)] = anyio.run(main, backend=name, backend_options=options)
    assert (at, json.loads(body)) == (30, {"changes": True, "cursor": FIRST})


def test_faults_make_long_polls_answer_at_once_without_changes_and_with_a_backoff(served):
    served.publish()
    served.faults.set(early_next=1, backoff=60)
    assert changes(served, after="") == {"changes": False, "cursor": "", "backoff": 60}
    served.faults.set(accept_and_close=1000, backoff=None)
    assert changes(served, after="") == {"changes": False, "cursor": ""}


def test_long_polls_are_refused_with_the_status_and_retry_after_of_the_faults(served):
    served.faults.set(refuse_status=429, retry_after=7.0)
    refused = httpx.get(served.changes_url, timeout=GUARD)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")


def test_a_half_open_long_poll_is_not_answered(served):
    served.faults.half_open = True
    served.publish()
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(served.changes_url, params={"after": "", "wait": 0}, timeout=httpx.Timeout(GUARD, read=0.2))
    served.stats.wait_for(lambda stats: stats.long_polls_held == 0)


def test_long_polls_are_answered_when_all_connections_are_closed_and_when_the_server_ends(served):
    for end in (served.close_websockets, served.stop):
        with held(served) as answer:
            end()
            assert answer.result(GUARD) == {"changes": False, "cursor": ""}


# All push channels


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_push_latency_delays_pushes_on_every_channel(backend, monkeypatch):
    app = ReferenceApp()
    app.faults.push_latency = 7.0
    monkeypatch.setattr("push_to_poll_client.testing._reference.state.time.monotonic", anyio.current_time)

    async def main():
        said = []

        async def send(message):
            said.append((anyio.current_time(), message.get("body")))

        async with anyio.create_task_group() as tasks:
            for path in ("/events", "/changes"):
                scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
                tasks.start_soon(app, scope, anyio.sleep_forever, send)
            await anyio.wait_all_tasks_blocked()
            began = anyio.current_time()
            app.publish()
            app.publish()
            await anyio.sleep(10)
            tasks.cancel_scope.cancel()
        return [(at - began, body) for at, body in said if body]

    name, options = testing.virtual_time(backend)
    said = anyio.run(main, backend=name, backend_options=options)
    assert {at for at, _ in said} == {7.0}
    assert sorted(body[:8] for _, body in said) == [b"id: 0000", b"id: 0000", b'{"change']


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_webhooks_are_sent_under_any_asgi_server_with_lifespan_support(backend):
    async def main():
        stage, said = anyio.Event(), []

        async def receive():
            if not said:
                return {"type": "lifespan.startup"}
            await stage.wait()
            return {"type": "lifespan.shutdown"}

        async def send(message):
            said.append(message["type"])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app, {"type": "lifespan"}, receive, send)
            await anyio.wait_all_tasks_blocked()
            app.publish()
            await run_sync(over, app, 1)
            stage.set()
        assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    with Receiver() as hooks:
        app = ReferenceApp()
        app.send_webhooks(hooks.url, SECRET)
        anyio.run(main, backend=backend)
        assert hooks.cursors == [FIRST]
