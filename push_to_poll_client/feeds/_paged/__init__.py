"""Parts of the declaration of a `PagedFeed`.

Readers find a value in a response. Senders put a value into a request. Outcomes give a response a meaning besides
its messages. `OldestFirst` and `NewestFirst` lead from one page to the next.
"""
