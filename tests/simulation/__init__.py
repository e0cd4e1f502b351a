"""Seeded lives of a consumer in virtual time, judged by an independent oracle.

    plan     describes a life
    draw     draws the plan from one number
    journal  records events in order, and passes them to the oracle
    feed     simulates the server: its messages, cursors, latency and faults
    store    simulates a store that fails, is slow and hangs, around a real store
    handler  simulates the user's handler: it takes time, fails and recovers
    loops    deterministic event loops
    callers  simulate the callers that call, wake, run and stop a consumer
    life     runs the consumers of one life, one after the other
    oracle   collects violations; it knows the feed, the requests, the store and the handler's effects
    timing, records, progress
             check the guarantees of DESIGN section 3 for the oracle
    story    reports a life that failed

`python -m tests.simulation FIRST COUNT [asyncio|trio]` runs lives and counts their failures by guarantee.

    replicas_plan    draws the plan of a life of one to three replicas on one shared store
    replicas         runs their processes, which stop, crash, freeze, and lose the store, their leases and commits
    replicas_oracle  collects violations; it knows the feed, the rows of the store, and the handler's calls

`python -m tests.simulation replicas FIRST COUNT [asyncio|trio]` runs these.

A life with a `SQLiteStore` runs in virtual time too, with the store's threads in the event loop.
"""
