"""WHAT NEXT: polls, one at a time, from page to page.

fetches, read_ahead      one page, and those after it ahead of time
behind, position         where polls start, and where a name begins
replay                   a range, on purpose
circle, walk, poller     one poll
polls                    one at a time, whoever asks for it
"""
