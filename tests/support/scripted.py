"""A server with a scripted list of responses, for listeners in virtual time."""

import anyio
import anyio.lowlevel
import httpx

__all__ = ["END", "RESET", "Script", "client_of"]

END = object()
RESET = httpx.ReadError("Connection reset by peer")


class Body(httpx.AsyncByteStream):
    """Play a list of steps: a number is a delay, an error is raised, bytes are sent, `END` ends.

    Without `END` the body stays open and sends nothing more.
    """

    def __init__(self, happenings, closed):
        self._happenings = happenings
        self._closed = closed

    async def __aiter__(self):
        for happening in self._happenings:
            if isinstance(happening, Exception):
                raise happening
            if happening is END:
                return
            if isinstance(happening, bytes):
                yield happening
            else:
                await anyio.sleep(happening)
        await anyio.sleep_forever()

    async def aclose(self):
        await anyio.lowlevel.checkpoint()  # a point where a stop may cancel it
        self._closed()


class Script(httpx.AsyncBaseTransport):
    """Respond as scripted, and repeat the last step for ever.

    A step is an error, a status, seconds to hold the response before the next step, the bytes of a body, a list of
    events in a body, a tuple of status, headers and such a list, or a function from the request to one of these.

    Attributes:
        requests: The received requests.
        asked_at: Their times, on the event loop's clock.
        open: Number of responses that were begun and not closed.
    """

    def __init__(self, *steps):
        self._steps = steps
        self.requests = []
        self.bodies = []
        self.asked_at = []
        self.open = 0
        self.closed = False

    async def handle_async_request(self, request):
        self.requests.append(request)
        self.bodies.append(await request.aread())
        self.asked_at.append(anyio.current_time())
        if "trace" in request.extensions:
            for part in ("headers", "body"):
                await request.extensions["trace"](f"http11.send_request_{part}.complete", {})
        step = self._steps[min(len(self.requests), len(self._steps)) - 1]
        return await self._answer(step, request)

    async def _answer(self, step, request):
        if callable(step):
            return await self._answer(step(request), request)
        if isinstance(step, tuple) and len(step) == 2:
            await anyio.sleep(step[0])
            return await self._answer(step[1], request)
        if isinstance(step, Exception):
            raise step
        status, headers, body = _whole(step)
        self.open += 1
        return httpx.Response(status, headers=headers, stream=Body(body, self._closed))

    def _closed(self):
        self.open -= 1

    async def aclose(self):
        self.closed = True

    def sent(self, name):
        """Return one header of each request."""
        return [request.headers.get(name) for request in self.requests]


def _whole(step):
    if isinstance(step, int):
        return step, {}, [END]
    if isinstance(step, bytes):
        return 200, {}, [step, END]
    return step if isinstance(step, tuple) else (200, {}, step)


def client_of(script, **options):
    """Return a client of this server."""
    return httpx.AsyncClient(transport=script, **options)
