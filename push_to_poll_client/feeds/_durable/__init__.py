"""What a Durable Stream says, without asking it: where a reader stands, what headers mean, what bodies hold.

Paragraphs are those of the Durable Streams Protocol, PROTOCOL.md in github.com/durable-streams/durable-streams.
"""
