"""The simulated vendors follow their protocols, so that the feeds also work with real ones."""

import anyio
import httpx
import pytest

from tests.vendors.calendar import Calendar
from tests.vendors.couchdb import CouchDB
from tests.vendors.drive import Drive
from tests.vendors.dropbox import Dropbox
from tests.vendors.github import GitHub
from tests.vendors.gmail import Gmail
from tests.vendors.graph import Graph
from tests.vendors.ntfy import Ntfy
from tests.vendors.okta import Okta
from tests.vendors.plaid import Plaid
from tests.vendors.remote_settings import RemoteSettings
from tests.vendors.stripe import Stripe
from tests.vendors.telegram import Telegram
from tests.vendors.vendor import SECRET, Vendor, number_of, read_token, token
from tests.vendors.zendesk import Zendesk

pytestmark = pytest.mark.anyio


async def ask(vendor, url=None, *, json=None, headers=None, **params):
    """Return one response: GET, or POST with this JSON."""
    async with vendor.client() as client:
        method = "GET" if json is None else "POST"
        where = httpx.URL(url or vendor.url).copy_merge_params(params) if params else url or vendor.url
        return await client.request(method, where, headers=vendor.headers | (headers or {}), json=json)


async def told(vendor, url=None, **kwargs):
    """Return the body of a successful response."""
    response = await ask(vendor, url, **kwargs)
    assert response.status_code == 200, response.text
    return response.json()


READS = {
    Calendar: ({}, lambda body: body["items"]),
    CouchDB: ({}, lambda body: body["results"]),
    Dropbox: ({"json": {"path": ""}}, lambda body: body["entries"]),
    Drive: ({"pageToken": token(at=0)}, lambda body: body["changes"]),
    GitHub: ({}, lambda body: body),
    Gmail: ({"startHistoryId": "5000"}, lambda body: body.get("history", [])),
    Graph: ({}, lambda body: body["value"]),
    Okta: ({}, lambda body: body),
    Plaid: ({"json": Plaid.body}, lambda body: body["added"]),
    RemoteSettings: ({"_expected": "0"}, lambda body: body["changes"]),
    Stripe: ({}, lambda body: body["data"]),
    Telegram: ({}, lambda body: body["result"]),
    Zendesk: ({"start_time": "0"}, lambda body: body["tickets"]),
}


class TestAllOfThem:
    @pytest.mark.parametrize("vendor", READS)
    async def test_vendors_return_published_entries_and_record_requests(self, vendor):
        how, entries = READS[vendor]
        vendor = vendor()
        assert entries(await told(vendor, **how)) == []
        vendor.publish(2)
        assert len(entries(await told(vendor, **how))) == 2
        assert len(vendor.requests) == 2

    @pytest.mark.parametrize(
        "vendor", [*(vendor for vendor in READS if vendor not in {Plaid, RemoteSettings, Telegram}), Ntfy]
    )
    async def test_requests_without_valid_credentials_are_answered_401(self, vendor):
        vendor = vendor(1)
        assert SECRET in str(vendor.headers) or vendor.authorization.startswith("Basic ")
        for headers in ({}, {"authorization": "Bearer other"}):
            async with vendor.client() as client:
                answer = await client.get(vendor.url, headers=headers)
            assert answer.status_code == 401
            assert SECRET not in answer.text

    @pytest.mark.parametrize("vendor", READS)
    async def test_responses_are_fixed_before_the_latency(self, vendor):
        how, entries = READS[vendor]
        vendor = vendor(1, latency=5)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.publish_later, vendor)
            assert len(entries(await told(vendor, **how))) == 1
        assert len(vendor.entries) == 2

    async def publish_later(self, vendor):
        await anyio.sleep(1)
        vendor.publish()

    async def test_scripted_responses_replace_the_usual_ones(self):
        vendor = Stripe(1)
        vendor.script += [httpx.Response(503), None]
        assert [(await ask(vendor)).status_code for _ in range(3)] == [503, 200, 200]

    async def test_a_vendor_without_an_answer_method_raises_not_implemented_error(self):
        with pytest.raises(NotImplementedError):
            await ask(Vendor())

    def test_an_altered_or_invented_token_is_refused(self):
        assert read_token(token(at=1)) == {"at": 1}
        for garbage in ("", "x", "!", "é", token(at=1)[:-1], "A" * 40, token(at=1).replace("I", "J")):
            assert read_token(garbage) is None

    @pytest.mark.parametrize("text", ["-1", "1.5", "x", "²", "9" * 30, "7"])
    def test_number_of_returns_none_for_an_invalid_or_too_large_number(self, text):
        assert number_of(text, most=6) is None
        assert number_of("6", most=6) == 6
        assert number_of(None, default=3) == 3


class TestStripe:
    async def test_pages_continue_to_older_and_to_newer_events(self):
        stripe = Stripe(5)
        newest_first = [event["id"] for event in reversed(stripe.entries)]

        async def page(**asked):
            body = await told(stripe, **asked)
            return [event["id"] for event in body["data"]], body["has_more"]

        assert await page(limit=2) == (newest_first[:2], True)
        assert await page(limit=2, starting_after=newest_first[1]) == (newest_first[2:4], True)
        assert await page(limit=2, starting_after=newest_first[3]) == (newest_first[4:], False)
        assert await page(limit=2, ending_before=newest_first[4]) == (newest_first[2:4], True)
        assert await page(limit=2, ending_before=newest_first[2]) == (newest_first[:2], False)
        assert await page(limit=100, ending_before=newest_first[0]) == ([], False)

    @pytest.mark.parametrize(
        "asked",
        [
            {"limit": "101"},
            {"limit": "0"},
            {"starting_after": "evt_x"},
            {"ending_before": "evt_x"},
            {"starting_after": "a", "ending_before": "b"},
        ],
    )
    async def test_invalid_parameters_are_answered_400(self, asked):
        assert (await ask(Stripe(2), **asked)).status_code == 400

    async def test_events_are_filtered_by_type_and_old_events_expire(self):
        stripe = Stripe(5)
        oldest = stripe.entries[0]["id"]
        assert len((await told(stripe, type="invoice.paid"))["data"]) == 2
        stripe.kept = 3
        assert len((await told(stripe))["data"]) == 3
        assert (await ask(stripe, ending_before=oldest)).json()["error"]["code"] == "resource_missing"
        assert stripe.throttled().status_code == 429


class TestGitHub:
    async def test_pages_shift_as_events_arrive(self):
        github = GitHub(5)
        first = await ask(github)
        github.publish()
        second = await ask(github, first.links["next"]["url"])
        assert second.json()[0] == first.json()[-1]
        assert second.links.keys() == {"prev", "next", "last", "first"}
        last = await ask(github, second.links["last"]["url"])
        assert "next" not in last.links

    async def test_an_unchanged_feed_is_answered_304_and_costs_no_quota(self):
        github = GitHub(1)
        first = await ask(github)
        assert first.headers["etag"].startswith('W/"')
        again = await ask(github, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.headers["x-poll-interval"]) == (304, "60")
        assert again.headers["x-ratelimit-remaining"] == first.headers["x-ratelimit-remaining"] == "4999"

    async def test_at_most_300_events_are_shown_and_30_per_page_by_default(self):
        github = GitHub(310, page_size=100)
        pages = [await told(github, per_page=100, page=page) for page in (1, 2, 3)]
        assert sum(map(len, pages)) == 300
        assert len(await told(github)) == 30
        assert (await ask(github, per_page=100, page=4)).status_code == 422

    async def test_late_events_appear_below_newer_ones(self):
        github = GitHub(3)
        newest = (await told(github))[0]
        github.publish_late(below=1)
        after = await told(github)
        assert after[0] == newest
        assert int(after[1]["id"]) > int(newest["id"])

    async def test_an_exhausted_quota_and_a_missing_user_agent_are_answered_403(self):
        github = GitHub(1)
        github.quota = 0
        primary = await ask(github)
        assert (primary.status_code, primary.headers["x-ratelimit-remaining"]) == (403, "0")
        assert github.secondary_limit(30).headers["retry-after"] == "30"
        assert "retry-after" not in github.secondary_limit().headers
        async with github.client() as client:
            del client.headers["user-agent"]
            assert (await client.get(github.url, headers=github.headers)).status_code == 403


class TestGraph:
    async def walk(self, graph, url=None, **asked):
        pages = [await told(graph, url, **asked)]
        while "@odata.nextLink" in pages[-1]:
            pages.append(await told(graph, pages[-1]["@odata.nextLink"]))
        return pages

    async def test_links_lead_through_all_pages_and_keep_the_query_parameters(self):
        graph = Graph(3)
        graph.empty_pages, graph.repeats = 1, True
        pages = await self.walk(graph, **{"$select": "subject"})
        assert [len(page["value"]) for page in pages] == [0, 2, 0, 2]
        assert pages[1]["value"][-1] == pages[3]["value"][0]
        assert "subject" in pages[-1]["@odata.deltaLink"]
        graph.publish()
        graph.change(0)
        graph.remove(1)
        news = [item for page in await self.walk(graph, pages[-1]["@odata.deltaLink"]) for item in page["value"]]
        assert news[-1]["@removed"] == {"reason": "deleted"}

    async def test_the_latest_cursor_skips_existing_entries(self):
        graph = Graph(3)
        pages = await self.walk(graph, **{"$deltatoken": "latest"})
        assert [page["value"] for page in pages] == [[]]
        assert (await self.walk(graph, pages[0]["@odata.deltaLink"]))[0]["value"] == []

    @pytest.mark.parametrize(("how", "status"), [({}, 410), ({"status": 404, "code": "syncStateNotFound"}, 404)])
    async def test_an_expired_delta_link_is_answered_410_or_404(self, how, status):
        graph = Graph(1)
        link = (await told(graph))["@odata.deltaLink"]
        graph.expire(location=status == 410, **how)
        answer = await ask(graph, link)
        assert answer.status_code == status
        assert ("location" in answer.headers) == (status == 410)
        assert len((await told(graph, answer.headers.get("location")))["value"]) == 1
        assert (await ask(graph, link[:-3])).status_code == 400


class TestPlaid:
    async def sync(self, plaid, cursor=None, **more):
        given = {} if cursor is None else {"cursor": cursor}
        return await ask(plaid, json=plaid.body | given | more)

    async def test_each_page_has_three_lists_and_a_cursor(self):
        plaid = Plaid(2)
        plaid.modify(0)
        plaid.remove(1)
        first = (await self.sync(plaid)).json()
        second = (await self.sync(plaid, first["next_cursor"])).json()
        assert [len(first[kind]) for kind in ("added", "modified", "removed")] == [2, 0, 0]
        assert [len(second[kind]) for kind in ("added", "modified", "removed")] == [0, 1, 1]
        assert (first["has_more"], second["has_more"]) == (True, False)
        third = (await self.sync(plaid, second["next_cursor"])).json()
        assert third["next_cursor"] == second["next_cursor"]

    async def test_a_change_during_pagination_fails_the_next_page(self):
        plaid = Plaid(3)
        first = (await self.sync(plaid)).json()
        plaid.publish()
        broken = await self.sync(plaid, first["next_cursor"])
        assert broken.status_code == 400
        assert broken.json()["error_code"] == "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"
        plaid.mutate_next = 1
        again = (await self.sync(plaid)).json()
        assert [(await self.sync(plaid, again["next_cursor"])).status_code for _ in range(2)] == [400, 200]

    async def test_a_feed_that_is_not_ready_returns_an_empty_page_and_cursor(self):
        plaid = Plaid(3)
        plaid.ready = False
        body = (await self.sync(plaid)).json()
        assert (body["next_cursor"], body["added"], body["has_more"]) == ("", [], False)

    @pytest.mark.parametrize(
        ("more", "code"),
        [
            ({"secret": "x"}, "INVALID_API_KEYS"),
            ({"access_token": "x"}, "INVALID_ACCESS_TOKEN"),
            ({"cursor": "x"}, "INVALID_CURSOR"),
            ({"count": 501}, "INVALID_FIELD"),
            ({"count": "1"}, "INVALID_FIELD"),
        ],
    )
    async def test_invalid_requests_are_answered_with_the_errors_of_the_vendor(self, more, code):
        answer = await self.sync(Plaid(1), **more)
        assert (answer.status_code, answer.json()["error_code"]) == (400, code)

    async def test_get_requests_are_refused(self):
        assert (await ask(Plaid())).json()["error_code"] == "INVALID_BODY"
        assert Plaid().throttled().status_code == 429


class TestCouchDB:
    async def test_since_continues_after_a_sequence(self):
        couch = CouchDB(3)
        first = await told(couch, limit=2)
        assert (len(first["results"]), first["pending"]) == (2, 1)
        rest = await told(couch, since=first["last_seq"])
        assert [row["id"] for row in rest["results"]] == ["order-3"]
        assert (await told(couch, since="now"))["results"] == []
        assert (await ask(couch, since="7-x")).status_code == 400

    async def test_only_the_newest_change_of_each_document_is_kept(self):
        couch = CouchDB(3)
        couch.change(0, deleted=True)
        rows = (await told(couch))["results"]
        assert [row["id"] for row in rows] == ["order-2", "order-3", "order-1"]
        assert rows[-1]["deleted"] is True

    async def test_seq_interval_leaves_out_the_sequences_between(self):
        rows = (await told(CouchDB(3), seq_interval=2))["results"]
        assert [row["seq"] is None for row in rows] == [True, False, True]

    async def test_a_failover_repeats_changes(self):
        couch = CouchDB(3)
        last = (await told(couch))["last_seq"]
        couch.fail_over(2)
        repeated = await told(couch, since=last)
        assert (len(repeated["results"]), repeated["last_seq"] == last) == (2, False)
        assert (await told(couch, since=last))["results"] == []

    async def test_an_unchanged_normal_feed_is_answered_304(self):
        couch = CouchDB(1)
        etag = (await ask(couch)).headers["etag"]
        assert (await ask(couch, headers={"if-none-match": etag})).status_code == 304
        couch.publish()
        assert (await ask(couch, headers={"if-none-match": etag})).status_code == 200

    @pytest.mark.parametrize(("asked", "held"), [({"timeout": 7000}, 7), ({}, 60)])
    async def test_a_long_poll_without_news_ends_after_its_timeout_in_milliseconds(self, asked, held):
        began = anyio.current_time()
        assert (await told(CouchDB(2), feed="longpoll", since="now", **asked))["results"] == []
        assert anyio.current_time() - began == pytest.approx(held)

    async def test_a_long_poll_with_a_heartbeat_waits_until_a_change(self):
        couch = CouchDB(2)
        with anyio.move_on_after(10_000) as gave_up:
            await ask(couch, feed="longpoll", since="now", heartbeat=1000, timeout=1000)
        assert gave_up.cancelled_caught
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(TestAllOfThem().publish_later, couch)
            assert len((await told(couch, feed="longpoll", since="now", heartbeat=1000))["results"]) == 1


class TestTelegram:
    async def updates(self, telegram, **asked):
        return [update["update_id"] - telegram.first for update in (await told(telegram, **asked))["result"]]

    async def test_an_offset_acknowledges_earlier_updates(self):
        telegram = Telegram(5)
        assert await self.updates(telegram) == await self.updates(telegram) == [1, 2]
        assert await self.updates(telegram, offset=telegram.first + 3) == [3, 4]
        assert await self.updates(telegram) == [3, 4]
        assert await self.updates(telegram, offset=telegram.first + 1) == [3, 4]
        assert await self.updates(telegram, offset=-1) == [5]
        assert await self.updates(telegram, json={"offset": telegram.first + 6, "timeout": 0}) == []

    async def test_an_old_offset_reads_updates_with_restarted_lower_ids(self):
        telegram = Telegram(2)
        telegram.fall_silent()
        telegram.publish(2)
        last = telegram.entries[1]["update_id"]
        assert await self.updates(telegram, offset=last + 1) == [3, 4]
        assert await self.updates(telegram, offset=telegram.entries[2]["update_id"] + 1) == [4]

    async def test_a_long_poll_without_news_ends_after_its_timeout_in_seconds(self):
        began = anyio.current_time()
        assert await self.updates(Telegram(), timeout=30) == []
        assert anyio.current_time() - began == pytest.approx(30)

    async def test_a_second_request_ends_a_waiting_request_with_409(self):
        telegram = Telegram()
        answers = []

        async def wait():
            answers.append(await ask(telegram, timeout=30))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert (await ask(telegram)).status_code == 200
        assert answers[0].status_code == 409

    async def test_invalid_requests_are_answered_with_the_errors_of_the_vendor(self):
        telegram = Telegram()
        assert (await ask(telegram, limit=101)).status_code == 400
        assert (await ask(telegram, telegram.origin + "/bot1:x/getUpdates")).status_code == 401
        assert telegram.throttled(5).json()["parameters"] == {"retry_after": 5}
        telegram.webhook = True
        assert (await ask(telegram)).status_code == 409


class TestDropbox:
    async def test_each_page_continues_from_the_cursor_of_the_page_before(self):
        dropbox = Dropbox(3)
        first = await told(dropbox, json={"path": "", "limit": 2})
        second = await told(dropbox, f"{dropbox.url}/continue", json={"cursor": first["cursor"]})
        assert (first["has_more"], second["has_more"]) == (True, False)
        assert second["entries"] == dropbox.entries[2:]
        dropbox.delete(0)
        third = await told(dropbox, f"{dropbox.url}/continue", json={"cursor": second["cursor"]})
        assert [entry[".tag"] for entry in third["entries"]] == ["deleted"]

    async def test_the_latest_cursor_skips_existing_entries(self):
        dropbox = Dropbox(3)
        latest = (await told(dropbox, f"{dropbox.url}/get_latest_cursor", json={"path": ""}))["cursor"]
        assert (await told(dropbox, f"{dropbox.url}/continue", json={"cursor": latest}))["entries"] == []

    async def test_an_expired_cursor_is_answered_409_reset(self):
        dropbox = Dropbox(1)
        cursor = (await told(dropbox, json={"path": ""}))["cursor"]
        dropbox.expire()
        answer = await ask(dropbox, f"{dropbox.url}/continue", json={"cursor": cursor})
        assert (answer.status_code, answer.json()["error"][".tag"]) == (409, "reset")

    async def test_a_concurrent_request_is_answered_429(self):
        dropbox = Dropbox(1, latency=1)
        statuses = []

        async def read():
            statuses.append((await ask(dropbox, json={"path": ""})).status_code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            tasks.start_soon(read)
        assert sorted(statuses) == [200, 429]

    async def test_a_long_poll_needs_no_credentials_and_returns_no_entries(self):
        dropbox = Dropbox(1)
        cursor = (await told(dropbox, json={"path": ""}))["cursor"]
        dropbox.backoff = 60
        async with dropbox.client() as client:
            began = anyio.current_time()
            quiet = await client.post(dropbox.notify, json={"cursor": cursor, "timeout": 40})
            assert anyio.current_time() - began == pytest.approx(40)
            dropbox.publish()
            loud = await client.post(dropbox.notify, json={"cursor": cursor})
            gone = await client.post(dropbox.notify, json={"cursor": "x"})
        assert quiet.json() == {"changes": False, "backoff": 60}
        assert loud.json() == {"changes": True, "backoff": 60}
        assert gone.status_code == 409

    async def test_get_requests_are_refused(self):
        assert (await ask(Dropbox())).status_code == 400
        assert (await ask(Dropbox(), json=[])).status_code == 200


class TestCalendar:
    async def test_only_the_last_page_has_a_sync_token(self):
        calendar = Calendar(3)
        first = await told(calendar, maxResults=2)
        last = await told(calendar, maxResults=2, pageToken=first["nextPageToken"])
        assert "nextSyncToken" not in first
        assert "nextPageToken" not in last
        calendar.cancel(0)
        news = await told(calendar, syncToken=last["nextSyncToken"])
        assert [event["status"] for event in news["items"]] == ["cancelled"]

    @pytest.mark.parametrize("asked", [{"timeMin": "2026"}, {"maxResults": "3"}, {"maxResults": "x"}, {}])
    async def test_a_page_token_without_the_same_parameters_is_refused(self, asked):
        calendar = Calendar(3)
        page = (await told(calendar, maxResults=2))["nextPageToken"]
        assert (await ask(calendar, pageToken=page, **asked)).status_code == 400

    async def test_a_page_token_needs_its_sync_token_and_sync_tokens_expire(self):
        calendar = Calendar(1)
        sync = (await told(calendar))["nextSyncToken"]
        calendar.publish(3)
        page = (await told(calendar, syncToken=sync))["nextPageToken"]
        assert (await ask(calendar, pageToken=page)).status_code == 400
        assert len((await told(calendar, syncToken=sync, pageToken=page))["items"]) == 1
        assert (await ask(calendar, syncToken=sync, timeMin="2026")).status_code == 400
        calendar.expire()
        assert (await ask(calendar, syncToken=sync)).status_code == 410
        assert calendar.throttled().status_code == 403


class TestDriveAndGmail:
    async def test_drive_tokens_lead_through_all_changes(self):
        drive = Drive()
        start = (await told(drive, f"{drive.url}/startPageToken"))["startPageToken"]
        assert start == drive.inception
        drive.publish(2)
        drive.change(0)
        drive.remove(1)
        first = await told(drive, pageToken=start, pageSize=2)
        last = await told(drive, pageToken=first["nextPageToken"])
        assert [change["removed"] for change in last["changes"]] == [False, True]
        assert (await told(drive, pageToken=last["newStartPageToken"]))["changes"] == []
        assert [(await ask(drive, **asked)).status_code for asked in ({}, {"pageToken": "x"})] == [400, 400]

    async def test_gmail_returns_its_history_id_and_refuses_an_expired_one(self):
        gmail = Gmail()
        start = (await told(gmail, f"{gmail.origin}/gmail/v1/users/me/profile"))["historyId"]
        assert "history" not in await told(gmail, startHistoryId=start)
        gmail.publish(3)
        first = await told(gmail, startHistoryId=start)
        last = await told(gmail, startHistoryId=start, pageToken=first["nextPageToken"])
        assert (len(first["history"]), len(last["history"])) == (2, 1)
        assert "nextPageToken" not in last
        assert last["historyId"] == gmail.entries[-1]["id"]
        gmail.oldest = 5001
        assert (await ask(gmail, startHistoryId=start)).status_code == 404
        assert (await ask(gmail)).status_code == 400


class TestNtfy:
    async def lines(self, ntfy, **asked):
        response = await ask(ntfy, **asked)
        assert response.headers["content-type"].startswith("application/x-ndjson")
        return [line.partition('"event": "')[2].partition('"')[0] for line in response.text.splitlines()]

    async def test_an_unknown_id_reads_everything(self):
        ntfy = Ntfy(4)
        known = ntfy.entries[1]["id"]
        assert len(await self.lines(ntfy, poll=1, since=known)) == 2
        ntfy.forgotten = 2
        assert len(await self.lines(ntfy, poll=1, since=known)) == 2
        assert len(await self.lines(ntfy, poll=1, since="a" * 12)) == 2
        assert len(await self.lines(ntfy, poll=1, since="latest")) == 1
        assert len(await self.lines(ntfy, poll=1, since=ntfy.entries[3]["time"])) == 1
        assert len(await self.lines(ntfy, poll=1)) == 2
        assert (await ask(ntfy, poll=1, since="x")).status_code == 400

    async def test_a_request_without_poll_is_answered_with_a_stream(self):
        assert await self.lines(Ntfy(1), since="all") == ["open", "message", "keepalive"]
        assert await self.lines(Ntfy(1)) == ["open", "keepalive"]
        assert await self.lines(Ntfy(1), headers={"x-poll": "1"}) == ["message"]

    async def test_a_scheduled_message_appears_after_its_delivery(self):
        ntfy = Ntfy(1)
        ntfy.schedule()
        assert len(await self.lines(ntfy, poll=1)) == 1
        ntfy.deliver()
        assert len(await self.lines(ntfy, poll=1)) == 2
        assert ntfy.throttled().status_code == 429


class TestRemoteSettings:
    async def test_only_the_newest_state_of_each_record_is_returned(self):
        settings = RemoteSettings(3)
        settings.change(0)
        settings.delete(1)
        whole = await told(settings, _expected="0")
        assert len(whole["changes"]) == 2
        assert whole["changes"][0]["last_modified"] > whole["changes"][1]["last_modified"]
        since = await told(settings, _expected="0", _since=f'"{settings.entries[2]["last_modified"]}"')
        assert [change.get("deleted", False) for change in since["changes"]] == [True, False]
        assert since["timestamp"] == settings.timestamp

    async def test_an_old_since_is_redirected_and_a_stale_expected_is_answered_204(self):
        settings = RemoteSettings(3)
        settings.oldest, settings.backoff = settings.timestamp, 30
        since = settings.entries[1]["last_modified"]
        old = await ask(settings, _expected="0", _since=f'"{since}"')
        assert (old.status_code, old.headers["backoff"]) == (307, "30")
        assert old.headers["location"] == f"{settings.url}?_expected=0"
        stale = await ask(settings, _expected=str(since - 1), _since=f'"{since}"')
        assert stale.status_code == 204
        quoted = await ask(settings, _expected='"5"')
        assert quoted.headers["location"] == f"{settings.url}?_expected=5"

    @pytest.mark.parametrize("asked", [{}, {"_since": '"1"'}, {"_expected": "0", "_since": "x"}])
    async def test_missing_or_invalid_parameters_are_answered_400(self, asked):
        assert (await ask(RemoteSettings(1), **asked)).status_code == 400


class TestOktaAndZendesk:
    async def test_okta_gives_a_next_link_on_every_page(self):
        okta = Okta(3)
        first = await ask(okta)
        second = await ask(okta, first.links["next"]["url"])
        third = await ask(okta, second.links["next"]["url"])
        assert [len(page.json()) for page in (first, second, third)] == [2, 1, 0]
        assert third.links["next"]["url"] == second.links["next"]["url"]
        assert len(first.headers.get_list("link")) == 2
        assert (await ask(okta, after="x")).status_code == 400
        okta.left = 0
        limited = await ask(okta)
        assert (limited.status_code, limited.headers["x-rate-limit-remaining"]) == (429, "0")

    async def test_zendesk_starts_at_a_time_and_marks_the_end_of_the_stream(self):
        zendesk = Zendesk(3)
        first = await told(zendesk, start_time=0)
        last = await told(zendesk, first["after_url"])
        assert (first["end_of_stream"], last["end_of_stream"]) == (False, True)
        zendesk.change(0)
        news = await told(zendesk, cursor=last["after_cursor"])
        assert [ticket["id"] for ticket in news["tickets"]] == [1]
        assert len((await told(zendesk, start_time=zendesk.entries[1]["generated_timestamp"]))["tickets"]) == 2
        for asked in ({}, {"cursor": "x"}, {"start_time": 0, "cursor": "x"}, {"start_time": "x"}):
            assert (await ask(zendesk, **asked)).status_code == 400
        assert zendesk.throttled(9).headers["retry-after"] == "9"
