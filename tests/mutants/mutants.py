"""Bugs that are planted on purpose, at least two for each guarantee, and the tests that have to see them.

Each is a text of a file, which stands there once, and what is put in its place. They are what one does wrong who
writes this loop by hand (TRAPS of the design), or what a well-meant change could break.
"""

from typing import NamedTuple

GUARANTEES = "tests/test_guarantees.py"
SCHEDULE = "tests/test_schedule.py"


class Mutant(NamedTuple):
    """A planted bug.

    Attributes:
        guarantee: What it breaks.
        name: What it does wrong.
        file: Where, in the package.
        old: The text.
        new: What stands there instead.
        tests: Arguments for pytest: what has to go red.
    """

    guarantee: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def of(guarantee, name, file, old, new, *tests):
    return Mutant(guarantee, name, file, old, new, tests or (GUARANTEES, "-k", f"{guarantee.lower()}_"))


MUTANTS = [
    of(
        "G1",
        "clears the flag late, after the fetch",
        "_schedule.py",
        "            self._succeed(now)\n",
        "            self._owed = None\n            self._succeed(now)\n",
    ),
    of(
        "G1",
        "takes a failed poll for an answer",
        "_schedule.py",
        "        if outcome in (Outcome.FAILED, Outcome.REFUSED):\n            self._owe_again()\n",
        "        if outcome in (Outcome.FAILED, Outcome.REFUSED):\n",
        SCHEDULE,
    ),
    of(
        "G1",
        "lets a hint drop a wake although polls start behind the saved cursor",
        "_polling/polls.py",
        "known = hinted and not self._overlaps",
        "known = hinted",
        "tests/test_overlap.py",
    ),
    of(
        "G2",
        "polls without the lock",
        "_polling/polls.py",
        "        async with self._lock:\n            if self._answered <= since:",
        "        if True:\n            if self._answered <= since:",
    ),
    of(
        "G2",
        "answers a call by the poll that was under way",
        "_polling/polls.py",
        "since, until = self._started,",
        "since, until = self._started - 1,",
    ),
    of(
        "G3",
        "takes no token",
        "_schedule.py",
        "            self._full_at = max(self._full_at, now) + self._spacing\n",
        "            self._full_at = now\n",
    ),
    of(
        "G3",
        "asks for a further page although the server asked to be left alone",
        "_polling/poller.py",
        "        return now >= self._until or self._schedule.server_not_before > now\n",
        "        return now >= self._until\n",
    ),
    of(
        "G4",
        "trusts a push channel that claims to be up",
        "_schedule.py",
        "        if self._ended is None or self.interval is None:\n",
        "        if self._ended is None or self.interval is None or any(self._channels.values()):\n",
    ),
    of(
        "G4",
        "polls no faster while a channel is down",
        "_schedule.py",
        "        return bool(self._channels) and (self.lossy or not all(self._channels.values()))\n",
        "        return self.lossy\n",
    ),
    of(
        "G5",
        "saves the page's cursor first",
        "_processing/processor.py",
        "            self._progress.read_at = read_at\n",
        "            self._progress.reached(page.cursor, read_at)\n",
    ),
    of(
        "G5",
        "saves the message's cursor before the message is processed",
        "_processing/processor.py",
        "            if stop.asked:\n                return False\n            if is_new:\n",
        "            progress.cursor = message.cursor\n            if stop.asked:\n"
        "                return False\n            if is_new:\n",
    ),
    of(
        "G5",
        "lets completion order move the cursor",
        "_processing/work.py",
        "        item.settled = True\n",
        "        item.settled = True\n        self.cursor = item.cursor or self.cursor\n",
        "tests/test_concurrency.py",
    ),
    of(
        "G5",
        "ends with a feed that has ended though a message waits",
        "_polling/walk.py",
        "closed = caught_up and self.closed",
        "closed = self.closed",
        "tests/test_the_end.py",
    ),
    of(
        "G5",
        "goes past what stood in a body that was lost on the way",
        "feeds/durable_streams.py",
        "        self._check_body(answer, begin.place, said)\n",
        "",
        "tests/test_durable_streams_answers.py",
    ),
    of(
        "G5",
        "saves the cursor of a page in the middle of a chain",
        "feeds/_paged/orders.py",
        "return None if self._at_end else cursor, Place",
        "return cursor, Place",
        "tests/test_page_semantics.py",
    ),
    of(
        "G5",
        "knows an answer before what it brought is settled",
        "feeds/_manners/tail.py",
        "        if not empty:\n            return\n",
        "",
        "tests/test_http_feed.py",
        "tests/test_manners_cache.py",
    ),
    of(
        "G5",
        "follows a redirect that loses the cursor to the newest messages",
        "feeds/_paged/asker.py",
        "        self._check_redirect(url, answer)\n",
        "",
        "tests/test_paged_feed.py",
    ),
    of(
        "G5",
        "hands out the newest first",
        "feeds/_walk_back/way.py",
        "for document in reversed(self._held) for pair in reversed(document.news)",
        "for document in self._held for pair in document.news",
        "tests/test_walk_back.py",
    ),
    of(
        "G5",
        "ends a walk at what is pinned to the top",
        "feeds/_walk_back/way.py",
        "self.digests[len(self.digests) // 2 :] if self.address == TOP else self.digests",
        "self.digests",
        "tests/test_walk_back.py",
    ),
    of(
        "G5",
        "forgets what is newer than it could hold",
        "feeds/_walk_back/way.py",
        "        self.above.append(document.address)\n",
        "",
        "tests/test_walk_back.py",
    ),
    of(
        "G6",
        "records nothing",
        "_processing/progress.py",
        "            records=self.pending.copy(),\n",
        "            records=[],\n",
    ),
    of(
        "G6",
        "forgets what is about to be recorded",
        "_processing/progress.py",
        "                unseen = unseen - settled\n",
        "                pass\n",
        "tests/test_progress.py",
    ),
    of(
        "G6",
        "marks before processing",
        "_processing/processor.py",
        "                    try:\n                        await handler(message)\n",
        "                    try:\n                        record(Record(key))\n"
        "                        await progress.flush()\n                        await handler(message)\n",
        GUARANTEES,
        "-k",
        "g5 or g7 or g9",
    ),
    of(
        "G6",
        "names what comes after the reset of a stream like what came before",
        "feeds/_durable/place.py",
        "return Place(since=",
        "return Place() or Place(since=",
        "tests/test_durable_streams_answers.py",
    ),
    of(
        "G6",
        "takes a state that comes again for the one before",
        "feeds/_paged/entries.py",
        "_encode((start, group))",
        "_encode(group)",
        "tests/test_paged_entries.py",
    ),
    of(
        "G7",
        "commits at the end of a page alone",
        "_processing/processor.py",
        "            if clock() >= progress.due:\n                await progress.flush()\n        return True\n",
        "        return True\n",
    ),
    of(
        "G7",
        "counts the flush interval from the end of the commit",
        "_processing/progress.py",
        "        self.due = began + self._flush_interval\n",
        "        self.due = self._clock() + self._flush_interval\n",
        "tests/test_progress.py",
    ),
    of(
        "G7",
        "with several in hand, commits at the end of a page alone",
        "_processing/workers.py",
        "        if self._clock() >= self._progress.due:\n            await self._progress.flush()\n",
        "        pass\n",
        "tests/test_concurrency.py",
    ),
    of(
        "G8",
        "drops the savepoint: what failed is committed with the rest",
        "stores/_sqlite_effects.py",
        "            self._or_undo(_TAKE_BACK, _END)\n",
        "            self._or_undo(_END)\n",
        "tests/test_transactional.py",
    ),
    of(
        "G8",
        "records what a failed commit has undone",
        "_processing/progress.py",
        "        if self._transactional:\n            return\n",
        "",
        "tests/test_transactional.py",
    ),
    of(
        "G8",
        "commits effects and records one after the other",
        "stores/_sqlite_effects.py",
        "            self._or_undo(_END)\n            self._blocks += 1\n",
        "            self._or_undo(_END)\n            self._connection.execute('COMMIT; -- effects')\n"
        "            self._connection.execute('BEGIN IMMEDIATE')\n            self._blocks += 1\n",
        "tests/test_transactional.py",
    ),
    of(
        "G8",
        "leaves the transaction open while a message waits",
        "_processing/trials.py",
        "        until = self._clock() + seconds\n        await self._progress.flush()\n",
        "        until = self._clock() + seconds\n",
        "tests/test_transactional.py",
        "tests/test_failures.py",
        "tests/test_progress.py",
    ),
    of(
        "G9",
        "skips what fails for good, without a word",
        "_processing/trials.py",
        "        if decision.fate is Fate.STOP:\n",
        "        if False:\n",
    ),
    of(
        "G9",
        "gives an unreadable message to the handler",
        "_processing/processor.py",
        "                if message.error is not None:\n",
        "                if False:\n",
    ),
    of(
        "G9",
        "lets the cursor pass a dead letter before it is kept",
        "_processing/progress.py",
        "            dead_letters=self.dead_letters,\n",
        "            dead_letters=[],\n",
        "tests/test_failures.py",
    ),
    of(
        "G9",
        "forgets the attempts with the process",
        "_processing/attempts.py",
        '            self._attempts = _decode(state.get(NAME, "{}"))\n',
        '            self._attempts = _decode("{}")\n',
        "tests/test_failures.py",
    ),
    of(
        "G9",
        "holds up the poll for as long as a message waits",
        "_processing/trials.py",
        "        if until > since + MAX_WAIT_IN_POLL:\n            raise Postponed(until)\n",
        "",
        "tests/test_failures.py",
    ),
    of(
        "G9",
        "forgets the attempts of those that failed first, for those that fail last",
        "_processing/workers.py",
        "        most = min(self._most, MAX_FAILING - self._open)\n",
        "        most = self._most\n",
        "tests/test_failures.py",
    ),
    of(
        "G5",
        "lets what comes after a message overtake it while it waits",
        "_processing/work.py",
        "        waiting = {item.lane for item in items if not item.settled}\n",
        "        waiting = set()\n",
        "tests/test_concurrency.py",
    ),
    of(
        "G5",
        "starts at the saved cursor although messages appear late",
        "_polling/behind.py",
        "        latest = self._looked - self._seconds\n",
        "        latest = self._looked\n",
        "tests/test_overlap.py",
    ),
    of(
        "G9",
        "goes past a gap without a word",
        "_polling/poller.py",
        "        await self._gaps.before(request.cursor, page.gap)\n",
        "",
        "tests/test_gaps.py",
    ),
    of(
        "G9",
        "passes over an archive that is gone",
        "feeds/_walk_back/way.py",
        "        self._missing = self._missing or leaf.missing\n",
        "",
        "tests/test_walk_back.py",
    ),
    of(
        "G10",
        "writes without looking at the token",
        "stores/_sqlite_place.py",
        "WHERE id = ? AND token = ?\n",
        "WHERE id = ? AND ? IS NOT NULL\n",
        "tests/test_sqlite_store.py",
        "-k",
        "replaced",
    ),
    of(
        "G10",
        "lets two claim a name",
        "stores/memory.py",
        "        if name in self._owners:\n",
        "        if False:\n",
    ),
    of(
        "G11",
        "keeps an error of any size",
        "_text.py",
        "for char in text[:MAX_TEXT])",
        "for char in text)",
    ),
    of(
        "G11",
        "keeps each wake of a flood",
        "_inbox.py",
        "        if len(self._pushes) < CAPACITY:\n",
        "        if True:\n",
    ),
    of(
        "G11",
        "keeps any number of dead letters",
        "_processing/trials.py",
        "        if progress.dead >= MAX_DEAD_LETTERS:\n",
        "        if False:\n",
        "tests/test_failures.py",
    ),
    of(
        "G11",
        "unpacks a bomb",
        "feeds/_manners/body.py",
        "part = unpack.some(chunk, limit + 1 - size)",
        "part = unpack.some(chunk, 0)",
        "tests/test_feeds_under_faults.py",
        "-k",
        "too_large",
    ),
    of(
        "G11",
        "holds all of a backlog",
        "feeds/_walk_back/way.py",
        "        while len(self._held) > FEWEST and ",
        "        while False and ",
        "tests/test_walk_back.py",
    ),
    of(
        "G11",
        "expands entities",
        "feeds/_atom/xml.py",
        "    parser.StartDoctypeDeclHandler = _refuse_doctype\n",
        "",
        "tests/test_atom_documents.py",
    ),
    of(
        "G12",
        "follows a redirect to another origin",
        "feeds/_manners/places.py",
        "        if place_of(target) not in self._trusted:\n",
        "        if False:\n",
    ),
    of(
        "G12",
        "shows the URL with its secrets",
        "_http.py",
        "    shown, _ = _parts(str(url))\n",
        "    shown = str(url)\n",
    ),
    of(
        "G12",
        "takes credentials to an origin that is trusted",
        "feeds/_manners/exchange.py",
        "        if call.at_home:\n            headers, options",
        "        if True:\n            headers, options",
        "tests/test_manners_origin.py",
        "tests/test_feeds_under_faults.py",
        "-k",
        "trusted",
    ),
    of(
        "G12",
        "shows a secret that stands in the path",
        "feeds/_manners/hidden.py",
        "            text = form.sub(field, text)\n",
        "            pass\n",
        "tests/test_manners_hidden.py",
    ),
]
