"""Whole seeded lives of a consumer in virtual time, judged by an independent oracle.

    plan     what is to happen in a life
    draw     draws it from one number
    journal  keeps what happened, in order, and tells the oracle
    feed     plays the server: its messages, cursors, latency and troubles
    store    plays a store that fails, is slow and hangs, around a real one
    handler  plays the user's handler: it takes time, fails and recovers
    loops    runs event loops that do the same each time
    callers  play those who call, wake, run and stop a consumer
    life     runs the consumers of one life, one after the other
    oracle   collects what is wrong; it knows the feed, the requests, the store and the handler's effects
    timing, records, progress
             check the guarantees of DESIGN section 3 for it
    story    tells a life that failed

`python -m tests.simulation FIRST COUNT [asyncio|trio]` runs lives and counts their failures by guarantee.

A life with a `SQLiteStore` runs in virtual time too, with its threads in the event loop.
"""
