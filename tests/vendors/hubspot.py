"""HubSpot: POST …/search for objects modified since a time, page by page; the time is deep in the body.

Several objects share one time of change, so a search must start with the objects already seen.
"""

import json

import httpx

from tests.vendors.vendor import SECRET, Vendor, iso, name

BODY = {
    "filterGroups": [{"filters": [{"propertyName": "lastmodifieddate", "operator": "GTE", "value": "0"}]}],
    "sorts": [{"propertyName": "lastmodifieddate", "direction": "ASCENDING"}],
    "limit": 100,
}
"""The search request of a client; the value is a time, or 0."""


class HubSpot(Vendor):
    origin = "https://api.hubspot.example"
    path = "/crm/v3/objects/contacts/search"
    authorization = f"Bearer pat-{SECRET}"

    def entry(self, number):
        return {"id": name(number), "properties": {"email": "…"}, "updatedAt": iso(number), "archived": False}

    def change(self, place):
        """Change a contact: a search finds it at its new time only."""
        changed = self.entries.pop(place)
        self.entries.append(changed | {"updatedAt": iso(len(self.entries) + 2)})

    def answer(self, request):
        asked = json.loads(request.content)
        [condition] = asked["filterGroups"][0]["filters"]
        after = int(asked.get("after", 0))
        if request.method != "POST" or {**condition, "value": "0"} != BODY["filterGroups"][0]["filters"][0]:
            return httpx.Response(400, json={"category": "VALIDATION_ERROR"})
        found = [contact for contact in self.entries if contact["updatedAt"] >= condition["value"]]
        end = after + min(asked["limit"], self.page_size)
        body = {"total": len(found), "results": found[after:end]}
        paging = {"paging": {"next": {"after": str(end)}}} if end < len(found) else {}
        return httpx.Response(200, json=body | paging)
