"""Bugs of push channels: what lets an attacker in, loses a subscription, or makes a loop of a channel."""

from mutant import SCHEDULE, of

VERIFIERS = "tests/test_verifiers.py"
TOKENS = "tests/test_verifiers_tokens.py"
CRASHES = "tests/test_subscription_crashes.py"

PUSH = [
    of(
        "G1",
        "lets a hint of no interest drop a wake that is pending",
        "_schedule.py",
        "        if known and not self._running and self._owed is None:\n",
        "        if known:\n",
        "tests/test_should_poll.py",
        SCHEDULE,
    ),
    of(
        "G11",
        "stops comparing at the first secret that fits, so that the time tells which",
        "listeners/_verifiers/comparing.py",
        "    return sum(hmac.compare_digest(one, other) for one in given for other in wanted) > 0",
        "    return any(hmac.compare_digest(one, other) for one in given for other in wanted)",
        "tests/test_verifiers_work.py",
    ),
    of(
        "G11",
        "takes signatures from any future",
        "listeners/_verifiers/freshness.py",
        "if abs(now - signed_at) <= self._tolerance else None",
        "if now - signed_at <= self._tolerance else None",
        VERIFIERS,
    ),
    of(
        "G11",
        "forgets a request a second before its copy is refused",
        "listeners/_verifiers/freshness.py",
        "signed_at + self._tolerance + 1 if",
        "signed_at + self._tolerance if",
        VERIFIERS,
    ),
    of(
        "G11",
        "believes a batch without any item",
        "listeners/_verifiers/body_token.py",
        "for item in value if isinstance(value, list) and value else [value]:",
        "for item in value if isinstance(value, list) else [value]:",
        TOKENS,
    ),
    of(
        "G11",
        "takes a delivery of GitHub with another id for another one",
        "listeners/_verifiers/vendors.py",
        'once=["{body}", "{x-github-delivery}"]',
        'once=["{body}{x-github-delivery}"]',
        VERIFIERS,
    ),
    of(
        "G10",
        "asks the server before it writes down what for, so that a crash subscribes twice",
        "listeners/_subscriptions/keeper.py",
        "            await self._save(self._book.plan(planned))\n        try:",
        "            self._book = self._book.plan(planned)\n            self._adopt()\n        try:",
        CRASHES,
    ),
    of(
        "G10",
        "forgets a subscription that it replaced and has not stopped",
        "listeners/_subscriptions/book.py",
        "leaving = tuple(one for one in self._leaving(self.current) if",
        "leaving = tuple(one for one in self.leaving if",
        CRASHES,
    ),
    of(
        "G4",
        "renews by the time of day alone, which jumps",
        "listeners/_subscriptions/when.py",
        "due = min(self._due_wall - now.wall, self._due_steady - now.steady)",
        "due = self._due_wall - now.wall",
        "tests/test_subscription_when.py",
    ),
    of(
        "G11",
        "confirms to a hub what was not asked for",
        "listeners/_subscriptions/inbox.py",
        "        if (mode, topic) != (asked.mode, asked.topic):\n            return _NO\n",
        "",
        "tests/test_websub.py",
        "-k",
        "not_asked_for",
    ),
    of(
        "G12",
        "gives a secret to a hub that anybody on the way can read",
        "listeners/_subscriptions/websub.py",
        '    if url.scheme == "https" or url.host == "localhost":\n',
        "    if url.host:\n",
        "tests/test_websub.py",
        "-k",
        "secret",
    ),
]
