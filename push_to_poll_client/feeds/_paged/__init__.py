"""The parts of a `PagedFeed`, from which a declaration of a feed is composed.

Readers find a value in a response, senders put a value into a request, outcomes say what a response means besides
its messages, and `OldestFirst` or `NewestFirst` say how one page leads to the next.
"""
