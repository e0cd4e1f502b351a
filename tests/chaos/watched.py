"""What stands between a listener and its channel, so that a test can tell what the listener said."""


class WatchedListener:
    """A listener like the one that it is given, and the channel of that.

    Args:
        listener: Which.
        told: Called with "up", "down" or "pushed" when that was said; the last one from any thread.
    """

    def __init__(self, listener, told):
        self.listener, self.told = listener, told
        self.name = listener.name

    async def listen(self, channel):
        self.channel = channel
        await self.listener.listen(self)

    def up(self):
        self.channel.up()
        self.told("up")

    def down(self, error=None):
        self.channel.down(error)
        self.told("down")

    def wake(self, push=None, /):
        self.told("pushed")
        self.channel.wake(push)

    def poll(self):
        self.channel.poll()

    def registered(self, until, /):
        self.channel.registered(until)

    @property
    def state(self):
        return self.channel.state

    async def save(self, state, /):
        await self.channel.save(state)
