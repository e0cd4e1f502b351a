"""ONCE: what becomes of messages, from the page that they came on to the commit that records them.

options                  what the user said
handler, hooks           the user's functions
attempts, failures       how often it was tried, and what then: decisions
progress                 what is settled and not yet committed
transactions, trials     one message, until it is settled
intake, overlap, work    what of a page is new, and in which order it may be done
workers, processor       several messages; a page
letters, dead_letters    what was given up on, once more
"""
