"""Atom feeds in the forms of RFC 5005: paged (§3), archived (§4) and complete (§2). Newest first.

Paged: pages are counted from the newest entry, so they shift. Archived: full documents become numbered archives
that do not change; a changed entry appears in both versions. Complete: one document, which does not show
deletions. In the other forms a deletion is an entry (RFC 6721).
"""

import hashlib
from xml.sax.saxutils import escape

import httpx

from tests.vendors.vendor import Vendor, iso, name, number_of

FORMS = ("paged", "archived", "complete")

ROOT = (
    '<feed xmlns="http://www.w3.org/2005/Atom" xmlns:at="http://purl.org/atompub/tombstones/1.0"'
    ' xmlns:fh="http://purl.org/syndication/history/1.0" xml:base="/orders/">'
)


class Atom(Vendor):
    """One feed.

    Args:
        form: One of `FORMS`.

    Attributes:
        gone: Numbers of deleted archives.
    """

    origin = "https://shop.example"
    path = "/orders/feed"

    def __init__(self, count=0, *, form="paged", **options):
        self.form = form
        self.gone = set()
        self.written = 0
        super().__init__(count, **options)

    def entry(self, _number=0):
        self.written += 1
        return {"id": f"urn:order:{name(self.written)}", "updated": iso(self.written), "number": self.written}

    def change(self, place=0):
        """Publish a new version of an entry."""
        self.written += 2
        entry = self.entries[place]
        if self.form != "archived":
            self.entries.remove(entry)
        self.entries.append(entry | {"updated": iso(self.written), "number": self.written})

    def publish_late(self):
        """Publish an entry that becomes visible below the newest one."""
        self.entries.insert(len(self.entries) - 1, self.entry())

    def delete(self, place=0):
        """Delete an entry."""
        self.written += 2
        entry = self.entries[place]
        if self.form != "archived":
            self.entries.remove(entry)
        if self.form != "complete":
            self.entries.append({"id": entry["id"], "updated": iso(self.written), "deleted": True})

    def answer(self, request):
        document = getattr(self, f"_{self.form}")(request)
        if document is None:
            return httpx.Response(404)
        content = document.encode()
        headers = {
            "content-type": "application/atom+xml",
            "etag": f'"{hashlib.sha256(content).hexdigest()[:16]}"',
        }
        if request.headers.get("if-none-match") == headers["etag"]:
            return httpx.Response(304, headers=headers)
        return httpx.Response(200, headers=headers, content=content)

    def _paged(self, request):
        page = number_of(request.url.params.get("page"), default=1, least=1)
        shown = self.entries[::-1]
        rest = shown[page * self.page_size :]
        links = {"next": f"feed?page={page + 1}"} if rest else {}
        return document(shown[(page - 1) * self.page_size :][: self.page_size], links)

    def _archived(self, request):
        """Serve `/orders/feed`, and archives from `/orders/feed/1`, the oldest."""
        archives = max(len(self.entries) - 1, 0) // self.page_size
        number = number_of(
            request.url.path.removeprefix(f"{self.path}").lstrip("/") or None, default=None, least=1
        )
        if number is None:
            links = {"prev-archive": f"feed/{archives}"} if archives else {}
            return document(self.entries[archives * self.page_size :][::-1], links)
        if number > archives or number in self.gone:
            return None
        links = {"prev-archive": f"feed/{number - 1}"} if number > 1 else {}
        shown = self.entries[(number - 1) * self.page_size : number * self.page_size]
        return document(shown[::-1], links | {"current": "feed"}, "<fh:archive/>")

    def _complete(self, request):
        return document(self.entries[::-1], {}, "<fh:complete/>")


def document(entries, links=None, marks="", root=ROOT):
    """Return a document of a feed."""
    head = "".join(f'<link rel="{rel}" href="{href}"/>' for rel, href in (links or {}).items())
    body = "".join(map(written, entries))
    return f"{root}<id>urn:orders</id><title>Orders</title>{head}{marks}{body}</feed>"


def written(entry):
    """Return an entry as its feed shows it."""
    if entry.get("deleted"):
        return f'<at:deleted-entry ref="{entry["id"]}" when="{entry["updated"]}"/>'
    return (
        f"<entry><id>{escape(entry['id'])}</id><updated>{entry['updated']}</updated>"
        f'<title>Order {entry["number"]}</title><link href="{entry["number"]}"/></entry>'
    )
