"""The parts of a `PagedFeed`: small, named, and composed by whoever declares a feed.

Readers say where something stands in an answer, senders where something goes in a request, outcomes what an answer
that is no page means; an order says how one page leads to the next. Each part is one file.
"""
