"""`LeasedMemoryStore` passes the suites of stores that replicas share."""

import contextlib

import pytest

from push_to_poll_client import MemoryStore, StoreError
from push_to_poll_client.testing import LeasedStoreSuite, StoreSuite, TransactionalStoreSuite
from tests.support.shared_memory import SharedMemory

pytestmark = pytest.mark.anyio


class TestLeasedMemoryStore(LeasedStoreSuite, TransactionalStoreSuite):
    async def make_store(self):
        return SharedMemory(transactional=True).replica("first")

    async def reopen(self, store):
        return store.shared.replica("reopened")

    async def second(self, store):
        return store.shared.replica("second")

    async def expire(self, store, name):
        store.shared.expire(name)

    async def want(self, store, name):
        store.shared.want(name)

    def in_doubt(self, store, outcome):
        return store.in_doubt(outcome)

    @contextlib.asynccontextmanager
    async def unreachable(self, store):
        with store.without_server():
            yield

    async def store_time(self, store):
        return store.shared.time_of_day()

    async def state(self, store, name, key):
        record = store.shared.progress[name].records.get(key)
        return record and record.state

    @contextlib.contextmanager
    def failing(self, store):
        store.failing = StoreError("planted")
        yield
        store.failing = None

    async def write(self, store, text):
        store.connection.write(text)

    async def written(self, store):
        return store.shared.effects


async def test_optional_methods_missing_in_a_suite_skip_the_test():
    suite, store = LeasedStoreSuite(), SharedMemory().replica()
    for method, arguments in (
        (suite.second, (store,)),
        (suite.expire, (store, "a")),
        (suite.want, (store, "a")),
        (suite.store_time, (store,)),
    ):
        with pytest.raises(pytest.skip.Exception, match=rf"does not override {method.__name__}\(\)"):
            await method(*arguments)
    for hook, arguments in ((suite.in_doubt, ("lost",)), (suite.unreachable, ())):
        with pytest.raises(pytest.skip.Exception, match=rf"does not override {hook.__name__}\(\)"):
            hook(store, *arguments)


async def test_a_store_without_a_lease_skips_the_tests_of_leases():
    class Suite(LeasedStoreSuite):
        async def make_store(self):
            return MemoryStore()

    with pytest.raises(pytest.skip.Exception, match="derive the test class from StoreSuite"):
        await Suite().test_a_session_begins_with_a_lease()


async def test_a_store_with_a_lease_needs_the_suite_of_leases():
    class Suite(StoreSuite):
        async def make_store(self):
            return SharedMemory().replica()

    with pytest.raises(pytest.fail.Exception, match="derive the test class from LeasedStoreSuite"):
        await Suite().test_a_store_with_leases_is_tested_with_their_suite()


async def test_a_transactional_suite_without_hooks_for_leases_skips_their_tests():
    with pytest.raises(pytest.skip.Exception, match="not derived from LeasedStoreSuite"):
        await TransactionalStoreSuite().test_a_lease_that_ends_during_a_handler_takes_back_its_effects()


@pytest.mark.parametrize(
    ("missing", "test"),
    [
        ("freed", "test_a_name_that_was_released_before_the_wait_is_free"),
        ("forward", "test_a_wake_reaches_only_the_owner_of_its_name"),
    ],
)
async def test_a_store_without_an_optional_method_skips_its_tests(missing, test):
    class Less:
        def __init__(self, store):
            self.store = store

        def __getattr__(self, name):
            if name == missing:
                raise AttributeError(name)
            return getattr(self.store, name)

    class Suite(LeasedStoreSuite):
        async def make_store(self):
            return Less(SharedMemory().replica())

        async def second(self, store):
            return Less(store.shared.replica())

        def unreachable(self, store):
            return TestLeasedMemoryStore().unreachable(store.store)

    suite = Suite()
    with pytest.raises(pytest.skip.Exception, match=rf"the store has no {missing}\(\)"):
        await getattr(suite, test)()
    await suite.test_a_wake_without_an_owner_is_no_error()
    await suite.test_an_unreachable_store_raises_and_blocks_nothing_else()
