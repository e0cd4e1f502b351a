"""FROM THE NEWEST BACK: feeds that show what is newest first, handed out oldest first.

leaf        one document
way         from an address down to what was seen
ways        those that are under way
fresh       when not to ask
walk_back   from a request to a page

The top of such a feed has one address, which says nothing of where a client was. So the cursor says what was seen
there: a short digest of each message, and the validators of the answer. These are sent with that cursor alone, so
that a 304 stands for what was settled, and a message that failed is fetched again. What is in the cursor is not
handed out again, however long ago it was processed; what appears late below it is.

A walk goes from document to document, one request for each fetch, so that rate limits and the consumer's time are
respected, until it meets what was seen. Then it hands out what it found, the oldest first. Only so many messages
are held; of what is newer the addresses are kept, and those documents are fetched again once those before are
settled. Addresses need not stand for the same messages then (pages that are counted from the newest shift): each
further walk goes down from there to what was seen last.

What is in memory only saves requests. A walk that is lost begins again at the top; whoever asks for one that
somebody else began is led to where it stands. A walk that was interrupted looks once more at the document before,
since of pages that are counted as many are skipped as messages were deleted. Between two requests of a walk
nothing can help against that: a feed that deletes has to lead on by a message, or by archives.
"""

from push_to_poll_client.feeds._walk_back.leaf import Leaf, Look, Order
from push_to_poll_client.feeds._walk_back.walk_back import WalkBack
from push_to_poll_client.feeds._walk_back.way import longer

__all__ = ["Leaf", "Look", "Order", "WalkBack", "longer"]
