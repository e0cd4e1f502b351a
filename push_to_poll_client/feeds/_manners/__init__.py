"""HTTP manners, once, for every feed: how a server is asked, and what its answers say beside their bodies.

A feed knows `Origin` and what it answers, and nothing of clients, redirects, encodings or rate limits.
"""
