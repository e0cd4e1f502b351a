"""The webhook in real frameworks, each of which mounts it at /hooks."""

import litestar
import pytest
from django.conf import settings
from django.core.asgi import get_asgi_application
from fastapi import FastAPI
from litestar import Litestar
from starlette.applications import Starlette
from starlette.routing import Mount

from push_to_poll_client.listeners.handshakes import cloudevents_origins, dropbox_challenge
from push_to_poll_client.listeners.webhook import WebhookListener
from tests.support.asgi_calls import SECRET, Signatures, asked, naming, scope_of, signed

pytestmark = pytest.mark.anyio


def in_fastapi(hooks):
    app = FastAPI()
    app.mount("/hooks", hooks)
    return app


def in_starlette(hooks):
    return Starlette(routes=[Mount("/hooks", app=hooks)])


def in_starlette_twice(hooks):
    return Starlette(routes=[Mount("/", routes=[Mount("/hooks", app=hooks)])])


def in_litestar(hooks):
    @litestar.asgi("/hooks", is_mount=True, copy_scope=True)
    async def mounted(
        scope: litestar.types.Scope, receive: litestar.types.Receive, send: litestar.types.Send
    ) -> None:
        await hooks(scope, receive, send)

    return Litestar([mounted], openapi_config=None, logging_config=None)  # else it configures all logs


def in_django(hooks):
    """Mount the webhook as a project's asgi.py does: Django cannot mount ASGI applications."""
    if not settings.configured:
        settings.configure(ROOT_URLCONF=(), SECRET_KEY="x", ALLOWED_HOSTS=["*"], USE_TZ=True, LOGGING_CONFIG=None)
    django = get_asgi_application()

    async def app(scope, receive, send):
        if scope["type"] == "http" and scope["path"].startswith("/hooks/"):
            await hooks({**scope, "root_path": "/hooks"}, receive, send)
        else:
            await django(scope, receive, send)

    return app


def by_itself(hooks):
    async def app(scope, receive, send):
        await hooks({**scope, "path": scope["path"].removeprefix("/hooks")}, receive, send)

    return app


@pytest.fixture(params=[in_fastapi, in_starlette, in_starlette_twice, in_litestar, in_django, by_itself])
def mount(request, anyio_backend_name):
    if anyio_backend_name == "trio" and request.param is in_django:
        pytest.skip("Django runs on asyncio alone")
    return request.param


async def test_a_webhook_mounted_in_a_framework_sees_the_path_below_and_the_raw_body(mount):
    seen = []
    verify = Signatures()

    def verifier(request):
        seen.append(request)
        return verify(request)

    hooks = WebhookListener(
        verifier,
        handshake=[dropbox_challenge(), cloudevents_origins({"events.example"})],
        route="to.names",
        max_body=1000,
    )
    app = mount(hooks)

    async def ask(method, path, query=b"", headers=(), body=b""):
        more = {
            "raw_path": path.encode(),
            "scheme": "http",
            "server": ("x", 80),
            "client": ("y", 1),
            "root_path": "",
        }
        scope = scope_of(method, path, query=query, headers={"Host": "x", **dict(headers)}, **more)
        return await asked(app, scope, body)

    body = naming("alice", text="é\r\n")
    answer = await ask("POST", "/hooks/a/b c", b"d=%C3%A9", signed(body), body)
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")
    assert (seen[0].path, seen[0].parameter("d"), seen[0].body) == ("/a/b c", "é", body)
    forged = await ask("POST", "/hooks/a", headers={"X-Signature": "forged"}, body=b"x")
    assert (forged.status, forged.body) == (401, b"")
    assert (await ask("POST", "/hooks/", headers=signed(b"x" * 1001))).status == 413
    assert (await ask("GET", "/hooks/", b"challenge=a%20b")).body == b"a b"
    granted = await ask("OPTIONS", "/hooks/", headers={"WebHook-Request-Origin": "events.example"})
    assert granted.headers["webhook-allowed-origin"] == "events.example"
    assert (await ask("GET", "/hooks/")).status == 405
    assert SECRET.decode() not in str(seen)
    counters = hooks.counters()
    assert (counters.received, counters.refused, counters.unknown_names) == (6, 1, 1)
