"""Two APIs as a shop might have them: changes by number, and orders by time and id."""

from base64 import b64encode

import httpx

from tests.vendors.vendor import SECRET, Vendor, iso, name, number_of


class Shop(Vendor):
    origin = "https://shop.vendor.example"
    authorization = "Basic " + b64encode(f"reader:{SECRET}".encode()).decode()

    def shown(self, request, entries):
        """Return the maximum number of entries of a page."""
        return entries[: number_of(request.url.params.get("limit"), default=100)]


class Stock(Shop):
    """GET /stock/changes?since=. Each response shows the newest number, also without changes."""

    path = "/stock/changes"

    def entry(self, number):
        return {"seq": number, "item": name(number)}

    def restore(self, count):
        """Restore a backup with so many changes."""
        del self.entries[count:]

    def answer(self, request):
        since = number_of(request.url.params.get("since"), default=0)
        shown = self.shown(request, self.entries[since:])
        return httpx.Response(200, json={"changes": shown, "newest": len(self.entries)})


class Orders(Shop):
    """GET /orders?since=&after_id=, by time and then by id. Many orders share a time."""

    path = "/orders"
    of_one_time = 2

    def entry(self, number):
        return {"id": f"{number:06}", "updated_at": iso(2 * (number // self.of_one_time))}

    def answer(self, request):
        asked = request.url.params
        place = (asked.get("since", ""), asked.get("after_id", "~" if "since" in asked else ""))
        later = [order for order in self.entries if (order["updated_at"], order["id"]) > place]
        return httpx.Response(200, json={"orders": self.shown(request, later)})
