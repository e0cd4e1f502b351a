"""`push-to-poll rebind`: the same feed at another URL, or the same consumer with another name."""

import anyio
import pytest

from push_to_poll_client import HTTPFeed, Record, SQLiteStore, StoreMismatch
from push_to_poll_client.cli._output import Exit
from push_to_poll_client.testing import serve_in_thread
from tests.support.command_line import BACKENDS, on, stderr_lines, tail, typed

OLD, NEW = "https://old.example/orders", "https://new.example/orders"
TOPIC = HTTPFeed(f"{NEW}?topic=a").identity


@pytest.fixture(autouse=True)
def _backend(request, monkeypatch):
    on(getattr(request, "param", "trio"), monkeypatch)


on_both = pytest.mark.parametrize("_backend", BACKENDS, indirect=True)


def begin(path, *names):
    """Store progress under names; each is given with the feed that it is bound to."""

    async def claim():
        store = SQLiteStore(path)
        for name, feed in names:
            session = await store.claim(name, feed=feed)
            await session.commit(cursor=f"cursor of {name}", records=[Record("1"), Record("2")])
            await session.release()

    anyio.run(claim)


@pytest.fixture
def state(tmp_path):
    path = str(tmp_path / "state.db")
    begin(path, ("orders", OLD))
    return path


@pytest.fixture
def unnamed(tmp_path):
    """Return the state of a consumer without `name=`."""
    path = str(tmp_path / "unnamed.db")
    begin(path, (OLD, OLD))
    return path


def cursor(path, name, feed):
    async def read():
        session = await SQLiteStore(path).claim(name, feed=feed)
        await session.release()
        return session.cursor, session.record_count

    return anyio.run(read)


def rebind(capsys, *arguments):
    code = typed("rebind", "--store", *arguments)
    out, err = capsys.readouterr()
    return code, out, stderr_lines(err)


SAME = "the next run continues at this cursor, with the same records and dead letters"
MOVED = "the next run continues at this cursor; if it means something else there, use push-to-poll rewind"


def output(name, new_name, feed, new_feed, cursor):
    names, feeds = f"name    {name}\nnow     {new_name}\n", f"feed    {feed}\nnow     {new_feed}\n"
    return f"{names}{feeds}cursor  {cursor}\nthen    {SAME if feed == new_feed else MOVED}\n"


@on_both
def test_a_name_is_bound_to_the_new_url_of_its_feed(state, capsys):
    shown = output("orders", "orders", OLD, NEW, "'cursor of orders'")
    assert rebind(capsys, state, "--feed", NEW) == (Exit.DONE, shown, [])
    assert cursor(state, "orders", NEW) == ("cursor of orders", 2)
    with pytest.raises(StoreMismatch):
        cursor(state, "orders", OLD)


@on_both
def test_a_consumer_without_a_name_gets_the_new_url_as_its_name(unnamed, capsys):
    shown = output(OLD, NEW, OLD, NEW, f"'cursor of {OLD}'")
    assert rebind(capsys, unnamed, "--feed", NEW) == (Exit.DONE, shown, [])
    assert cursor(unnamed, NEW, NEW) == (f"cursor of {OLD}", 2)


def test_a_consumer_without_a_name_gets_one(unnamed, capsys):
    shown = output(OLD, "orders", OLD, OLD, f"'cursor of {OLD}'")
    assert rebind(capsys, unnamed, "--name", OLD, "--new-name", "orders") == (Exit.DONE, shown, [])
    assert cursor(unnamed, "orders", OLD)[0] == f"cursor of {OLD}"


def test_a_name_and_a_feed_are_changed_at_once(unnamed, capsys):
    assert rebind(capsys, unnamed, "--feed", NEW, "--new-name", "orders")[0] == Exit.DONE
    assert cursor(unnamed, "orders", NEW)[0] == f"cursor of {OLD}"


@pytest.mark.parametrize(
    ("feed", "identity"),
    [
        (f"{NEW}?limit=100", NEW),
        ("HTTPS://me:s3cret@New.Example:443/orders?limit=5#x", NEW),
        (f"{NEW}?topic=a&limit=100", TOPIC),
        (TOPIC, TOPIC),
        (TOPIC.replace("…", r"\u2026"), TOPIC),  # as an error shows the topic
        (f"{TOPIC} as lines", f"{TOPIC} as lines"),
        (f"{NEW} as lines", f"{NEW} as lines"),
        ("orders of the shop", "orders of the shop"),
    ],
)
def test_a_feed_is_named_by_its_url_or_by_its_identity(state, capsys, feed, identity):
    code, out, err = rebind(capsys, state, "--feed", feed)
    assert (code, err) == (Exit.DONE, [])
    assert "s3cret" not in out
    assert cursor(state, "orders", identity)[0] == "cursor of orders"


def test_the_identity_in_a_mismatch_error_can_be_typed(state, capsys):
    with pytest.raises(StoreMismatch) as mismatch:
        cursor(state, "orders", TOPIC)
    shown = str(mismatch.value).partition(", not to '")[2].partition("'")[0]
    assert rebind(capsys, state, "--feed", shown)[0] == Exit.DONE
    assert cursor(state, "orders", TOPIC)[0] == "cursor of orders"


def test_a_rebind_that_was_done_already_changes_nothing(state, capsys):
    for _ in range(2):
        assert rebind(capsys, state, "--feed", OLD, "--new-name", "orders", "--replace")[0] == Exit.DONE
    assert cursor(state, "orders", OLD) == ("cursor of orders", 2)


def test_a_name_that_exists_is_refused_and_replaced_if_asked(unnamed, capsys):
    begin(unnamed, ("orders", NEW))
    code, out, err = rebind(capsys, unnamed, "--name", OLD, "--feed", NEW, "--new-name", "orders")
    assert (code, out) == (Exit.USAGE, "")
    assert "choose another name, or delete its state with --replace" in err[0]
    assert cursor(unnamed, "orders", NEW)[0] == "cursor of orders"
    arguments = ["--name", OLD, "--feed", NEW, "--new-name", "orders", "--replace"]
    code, out, err = rebind(capsys, unnamed, *arguments)
    assert (code, err) == (Exit.DONE, [])
    assert "deleted 2 records and 0 dead letters of the replaced consumer" in out
    assert cursor(unnamed, "orders", NEW)[0] == f"cursor of {OLD}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --feed, --new-name or both"),
        (["--replace"], "give --feed, --new-name or both"),
        (["--feed", ""], "--feed must be the feed's URL or identity, with 1 to 1,000 characters"),
        (["--feed", "x" * 1001], "--feed must be the feed's URL or identity, with 1 to 1,000 characters"),
        (["--new-name", ""], "--new-name must be a name, with 1 to 1,000 characters"),
        (["--new-name", "\udcff"], "--new-name must be a name, with 1 to 1,000 characters"),
        (["--feed", "\udcff"], "--feed must be the feed's URL or identity, with 1 to 1,000 characters"),
        (["--feed", "https://"], "--feed: url must start with http:// or https://, got (not a URL)"),
        (["--feed", "https://me:s3cret@shop.example:port/"], "--feed: url cannot be parsed"),
        (["--name", "other", "--feed", NEW], "--name is not a consumer of the store; choose one of 'orders'"),
    ],
)
def test_invalid_arguments_are_reported_in_one_sentence_and_change_nothing(state, capsys, arguments, says):
    code, out, err = rebind(capsys, state, *arguments)
    assert (code, out, len(err)) == (Exit.USAGE, "", 1)
    assert says in err[0]
    assert "s3cret" not in err[0]
    assert cursor(state, "orders", OLD) == ("cursor of orders", 2)


def test_a_file_in_use_is_left_alone(state, capsys):
    async def own():
        store = SQLiteStore(state)
        session = await store.claim("another", feed=OLD)
        result = await anyio.to_thread.run_sync(lambda: rebind(capsys, state, "--name", "orders", "--feed", NEW))
        await session.release()
        return result

    code, out, err = anyio.run(own)
    assert (code, out, len(err)) == (Exit.STATE, "", 1)
    assert "is in use by process" in err[0]
    assert "stop it first" in err[0]
    assert cursor(state, "orders", OLD)[0] == "cursor of orders"


def test_a_missing_file_is_reported(tmp_path, capsys):
    code, _, err = rebind(capsys, str(tmp_path / "none.db"), "--feed", NEW)
    assert code == Exit.STATE
    assert "no state file at " in err[0]


def test_tail_goes_on_after_the_feed_has_moved(tmp_path, capfdbinary):
    state = str(tmp_path / "state.db")
    with serve_in_thread(backlog=3) as server:
        moved = server.url.replace("127.0.0.1", "localhost")
        first = ["--once", "--store", state, "--name", "orders"]
        assert len(tail(capfdbinary, server.url, *first)[1]) == 3
        code, lines, err = tail(capfdbinary, moved, *first)
        assert (code, lines) == (Exit.STATE, [])
        assert "push-to-poll rebind" in err
        assert typed("rebind", "--store", state, "--feed", moved) == Exit.DONE
        capfdbinary.readouterr()
        assert tail(capfdbinary, moved, *first)[:2] == (Exit.DONE, [])


def test_tail_without_a_name_warns_of_a_new_one(tmp_path, capfdbinary):
    state = str(tmp_path / "state.db")
    with serve_in_thread(backlog=3) as server:
        moved = server.url.replace("127.0.0.1", "localhost")
        tail(capfdbinary, server.url, "--once", "--store", state)
        _, lines, err = tail(capfdbinary, moved, "--once", "--store", state)
        assert len(lines) == 3
        assert "starts at the beginning; there are already" in err
        _, lines, err = tail(capfdbinary, moved, "--once", "--store", state)
        assert (lines, stderr_lines(err)) == ([], [])


def test_a_name_for_tail_needs_a_state(capfdbinary):
    code, _, err = tail(capfdbinary, OLD, "--name", "orders")
    assert code == Exit.USAGE
    assert "--name is the consumer's name in the store; add --store, or leave out --name" in err
