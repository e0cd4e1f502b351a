"""Nextcloud's activities: GET …/activity. The cursor is a response header; the end is always 304."""

from base64 import b64encode

import httpx

from tests.vendors.vendor import SECRET, Vendor, iso, number_of


class Nextcloud(Vendor):
    origin = "https://cloud.vendor.example"
    path = "/ocs/v2.php/apps/activity/api/v2/activity"
    authorization = "Basic " + b64encode(f"reader:{SECRET}".encode()).decode()

    def entry(self, number):
        return {"activity_id": number, "app": "files", "type": "file_changed", "datetime": iso(number)}

    def refusal(self, request):
        if request.headers.get("ocs-apirequest") != "true":
            return httpx.Response(412, json={"message": "CSRF check failed"})
        return super().refusal(request)

    def answer(self, request):
        asked = request.url.params
        since = number_of(asked.get("since"), default=0)
        if since is None or asked.get("format") != "json" or asked.get("sort") != "asc":
            return httpx.Response(400, json={"message": "…"})
        limit = min(number_of(asked.get("limit"), default=50) or 50, self.page_size)
        shown = [activity for activity in self.entries if activity["activity_id"] > since][:limit]
        if not shown:
            return httpx.Response(304)
        body = {"ocs": {"meta": {"status": "ok", "statuscode": 200}, "data": shown}}
        return httpx.Response(200, json=body, headers={"x-activity-last-given": str(shown[-1]["activity_id"])})
