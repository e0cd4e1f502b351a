"""Feeds of the simulated vendors, declared as in `docs/vendors.md`."""

from push_to_poll_client.feeds.paged import (
    CONTENTS,
    LINES,
    Entries,
    Latest,
    LongPoll,
    NewestFirst,
    OldestFirst,
    PagedFeed,
    as_url,
    at_end,
    expired,
    from_body,
    from_each,
    from_header,
    from_last,
    from_link,
    gap,
    not_ready,
    restart,
    status,
    throttled,
    to_body,
    to_query,
)
from tests.vendors.calendar import Calendar
from tests.vendors.couchdb import CouchDB
from tests.vendors.discord import Discord
from tests.vendors.drive import Drive
from tests.vendors.dropbox import Dropbox
from tests.vendors.github import GitHub
from tests.vendors.gmail import Gmail
from tests.vendors.graph import Graph
from tests.vendors.hubspot import BODY, HubSpot
from tests.vendors.matrix import Matrix
from tests.vendors.nextcloud import Nextcloud
from tests.vendors.ntfy import Ntfy
from tests.vendors.okta import Okta
from tests.vendors.pagerduty import PagerDuty
from tests.vendors.plaid import Plaid
from tests.vendors.remote_settings import RemoteSettings
from tests.vendors.stripe import Stripe
from tests.vendors.syncthing import Syncthing
from tests.vendors.telegram import Telegram
from tests.vendors.zendesk import Zendesk

DECLARED = {}
"""For each vendor, a function from a server in memory, and further arguments, to a feed."""


def declares(vendor):
    def keep(function):
        DECLARED[vendor] = function
        return function

    return keep


def feed_of(vendor, **options):
    options = {"client": options.get("client") or vendor.client(), "headers": vendor.headers} | options
    return DECLARED[type(vendor)](vendor, options)


@declares(Stripe)
def stripe(vendor, options):
    return PagedFeed(
        vendor.url,
        entries=Entries("data", type="type", time="created"),
        pages=NewestFirst(next=from_last("id"), send=to_query("starting_after"), more=from_body("has_more")),
        **options,
    )


@declares(GitHub)
def github(vendor, options):
    return PagedFeed(
        vendor.url,
        entries=Entries(type="type", time="created_at"),
        pages=NewestFirst(next=from_link("next"), send=as_url()),
        **options,
    )


@declares(Graph)
def graph(vendor, options):
    return PagedFeed(
        vendor.url,
        entries=Entries("value", version=CONTENTS, deleted="@removed"),
        pages=OldestFirst(cursor=from_body("@odata.deltaLink"), next=from_body("@odata.nextLink"), send=as_url()),
        outcomes=[
            expired(status(410), start=from_header("location")),
            expired(from_body("error", "code").equals("syncStateNotFound")),
        ],
        latest=Latest({"$deltatoken": "latest"}),
        **options,
    )


@declares(Plaid)
def plaid(vendor, options):
    return PagedFeed(
        vendor.url,
        json=vendor.body,
        entries=Entries(
            "added", "modified", "removed", id="transaction_id", version=CONTENTS, deletions="removed"
        ),
        pages=OldestFirst(
            cursor=at_end(from_body("next_cursor")), send=to_body("cursor"), more=from_body("has_more")
        ),
        outcomes=[
            restart(from_body("error_code").equals("TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION")),
            not_ready(from_body("next_cursor").equals("")),
        ],
        **options,
    )


@declares(CouchDB)
def couchdb(vendor, options):
    return PagedFeed(
        vendor.url,
        entries=Entries("results", version=("changes", 0, "rev"), deleted="deleted"),
        pages=OldestFirst(
            cursor=from_body("last_seq"), each=from_each("seq"), send=to_query("since"), more=from_body("pending")
        ),
        long_poll=LongPoll(to_query("timeout"), longest=60, per_second=1000, also={"feed": "longpoll"}),
        latest=Latest({"since": "now", "limit": "1"}),
        **options,
    )


@declares(Telegram)
def telegram(vendor, options):
    return PagedFeed(
        f"{vendor.origin}/bot{{token}}/getUpdates",
        url_secrets={"token": vendor.token},
        entries=Entries("result", id="update_id"),
        pages=OldestFirst(cursor=from_each("update_id").then(lambda last: last + 1), send=to_query("offset")),
        outcomes=[throttled(status(429), after=from_body("parameters", "retry_after"))],
        long_poll=LongPoll(to_query("timeout"), longest=50),
        **options,
    )


@declares(Dropbox)
def dropbox(vendor, options):
    cursor = to_body("cursor", at=f"{vendor.url}/continue", alone=True)
    return PagedFeed(
        vendor.url,
        json={"path": ""},
        entries=Entries("entries", id="path_lower", version=CONTENTS, type=".tag"),
        pages=OldestFirst(cursor=from_body("cursor"), send=cursor, more=from_body("has_more")),
        outcomes=[expired(from_body("error", ".tag").equals("reset"))],
        latest=Latest(at=f"{vendor.url}/get_latest_cursor"),
        **options,
    )


@declares(Calendar)
def calendar(vendor, options):
    return PagedFeed(
        vendor.url,
        entries=Entries("items", version="etag", deleted=lambda event: event["status"] == "cancelled"),
        pages=OldestFirst(
            cursor=from_body("nextSyncToken"),
            send=to_query("syncToken"),
            next=from_body("nextPageToken"),
            send_next=to_query("pageToken"),
        ),
        outcomes=[expired(status(410))],
        **options,
    )


@declares(Drive)
def drive(vendor, options):
    return PagedFeed(
        vendor.url,
        entries=Entries("changes", id="fileId", version=CONTENTS, deleted="removed"),
        pages=OldestFirst(
            cursor=lambda reply: reply.at("newStartPageToken") or reply.at("nextPageToken"),
            send=to_query("pageToken"),
            more=from_body("nextPageToken"),
        ),
        latest=Latest(at=f"{vendor.url}/startPageToken", cursor=from_body("startPageToken")),
        **options,
    )


@declares(Gmail)
def gmail(vendor, options):
    return PagedFeed(
        vendor.url,
        entries=Entries("history", optional=True),
        pages=OldestFirst(
            cursor=at_end(from_body("historyId")),
            send=to_query("startHistoryId"),
            next=from_body("nextPageToken"),
            send_next=to_query("pageToken"),
        ),
        outcomes=[expired(status(404))],
        latest=Latest(at="profile", cursor=from_body("historyId")),
        **options,
    )


@declares(Ntfy)
def ntfy(vendor, options):
    return PagedFeed(
        f"{vendor.url}?poll=1",
        entries=Entries(LINES, time="time", only=lambda event: event["event"] == "message"),
        pages=OldestFirst(cursor=from_each("id"), send=to_query("since")),
        **options,
    )


@declares(RemoteSettings)
def remote_settings(vendor, options):
    return PagedFeed(
        vendor.url,
        entries=Entries("changes", version="last_modified", deleted="deleted", newest_first=True),
        pages=OldestFirst(cursor=from_body("timestamp"), send=to_query("_since")),
        hint=to_query("_expected", otherwise="0"),
        **options,
    )


@declares(Okta)
def okta(vendor, options):
    return PagedFeed(
        vendor.url,
        entries=Entries(id="uuid", type="eventType", time="published"),
        pages=OldestFirst(cursor=from_link("next"), send=as_url()),
        **options,
    )


@declares(Zendesk)
def zendesk(vendor, options):
    return PagedFeed(
        f"{vendor.url}?start_time=0",
        entries=Entries("tickets", version="updated_at", deleted=lambda ticket: ticket["status"] == "deleted"),
        pages=OldestFirst(cursor=from_body("after_url"), send=as_url(), more=~from_body("end_of_stream")),
        **options,
    )


def timelines(body):
    """Return the timelines of the rooms of a Matrix server."""
    return [room["timeline"] for room in body.get("rooms", {}).get("join", {}).values()]


@declares(Matrix)
def matrix(vendor, options):
    return PagedFeed(
        f"{vendor.url}?set_presence=offline",
        entries=Entries(
            lambda body: [event for timeline in timelines(body) for event in timeline["events"]],
            id="event_id",
            type="type",
            time="origin_server_ts",
        ),
        pages=OldestFirst(cursor=from_body("next_batch"), send=to_query("since")),
        outcomes=[
            gap(lambda reply: any(timeline["limited"] for timeline in timelines(reply.body))),
            throttled(status(429), after=from_body("retry_after_ms").then(lambda ms: ms / 1000)),
        ],
        long_poll=LongPoll(to_query("timeout"), longest=30, per_second=1000),
        latest=Latest({"filter": '{"room": {"timeline": {"limit": 0}}}'}),
        **options,
    )


@declares(Discord)
def discord(vendor, options):
    return PagedFeed(
        f"{vendor.url}?limit=100",
        entries=Entries(newest_first=True, time="timestamp"),
        pages=OldestFirst(cursor=from_each("id"), send=to_query("after", otherwise="0")),
        latest=Latest(cursor=from_last("id")),
        **options,
    )


@declares(Nextcloud)
def nextcloud(vendor, options):
    return PagedFeed(
        f"{vendor.url}?format=json&sort=asc&limit=200",
        entries=Entries(("ocs", "data"), id="activity_id", type="type", time="datetime"),
        pages=OldestFirst(cursor=from_header("x-activity-last-given"), send=to_query("since", otherwise="0")),
        outcomes=[not_ready(status(304))],
        **options | {"headers": options["headers"] | {"OCS-APIRequest": "true"}},
    )


@declares(PagerDuty)
def pagerduty(vendor, options):
    return PagedFeed(
        f"{vendor.url}?limit=100",
        entries=Entries("log_entries", type="type", time="created_at"),
        pages=NewestFirst(
            next=lambda reply: reply.at("offset") + reply.at("limit"),
            send=to_query("offset"),
            more=from_body("more"),
        ),
        **options,
    )


@declares(HubSpot)
def hubspot(vendor, options):
    return PagedFeed(
        vendor.url,
        json=BODY,
        entries=Entries("results", version="updatedAt"),
        pages=OldestFirst(
            cursor=from_last("updatedAt"),
            send=to_body("filterGroups", 0, "filters", 0, "value"),
            next=from_body("paging", "next", "after"),
            send_next=to_body("after"),
        ),
        **options,
    )


@declares(Syncthing)
def syncthing(vendor, options):
    return PagedFeed(
        vendor.url,
        entries=Entries(version="time", type="type", time="time"),
        pages=OldestFirst(cursor=from_each("id"), send=to_query("since", otherwise="0")),
        long_poll=LongPoll(to_query("timeout", otherwise="0"), longest=60),
        latest=Latest({"since": "0", "limit": "1"}),
        **options,
    )
