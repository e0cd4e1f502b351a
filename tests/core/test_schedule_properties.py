"""Any sequence of events, at any time and with any settings, keeps G1-G4."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from push_to_poll_client._schedule import PollOutcome
from tests.support.forms import form
from tests.support.schedule_world import World

seconds = st.floats(0.0, 1000.0, allow_nan=False)
fraction = st.floats(0.0, 0.999)


class ScheduleMachine(RuleBasedStateMachine):
    @initialize(
        fallback=st.one_of(st.none(), st.floats(10.0, 200.0)),
        degraded=st.one_of(st.none(), st.floats(10.0, 300.0)),
        rate=st.floats(0.1, 50.0),
        burst=st.integers(1, 10),
        wake_delay=st.floats(0.0, 10.0),
        can_wait=st.booleans(),
    )
    def settle(self, **setting):
        self.world = World(**setting)

    @rule(push=st.booleans(), known=st.booleans())
    def wake(self, push, known):
        self.world.wake(push=push, known=known)

    @rule(seconds=seconds)
    def tick(self, seconds):
        self.world.tick(seconds)

    @precondition(lambda self: not self.world.running and not self.world.held)
    @rule()
    def tick_until_due(self):
        decision = self.world.decision()
        if self.world.now < decision.at < 1e12:
            self.world.now = decision.at

    @precondition(lambda self: self.world.due())
    @rule()
    def start(self):
        self.world.start()

    @precondition(lambda self: self.world.may_start_by_hand())
    @rule()
    def start_by_hand(self):
        self.world.start_by_hand()

    @precondition(lambda self: self.world.running)
    @rule(
        outcome=st.sampled_from(list(PollOutcome)),
        found=st.integers(0, 2),
        retry_after=st.one_of(st.none(), st.floats(0.0, 1e9)),
        resume_in=st.one_of(st.none(), st.floats(0.0, 1e5)),
        free=st.booleans(),
        poll_within=st.one_of(st.none(), st.floats(0.0, 1e9)),
        jitter=fraction,
    )
    def end(self, outcome, resume_in, jitter, **ended):
        self.world.jitter = jitter
        self.world.end(outcome, resume_in=resume_in if outcome is PollOutcome.MORE else None, **ended)

    @rule()
    def resume_now(self):
        self.world.resume_now()

    @precondition(lambda self: not self.world.running)
    @rule(by=st.floats(-1e4, 1e4))
    def another_clock(self, by):
        self.world.shift(by)

    @precondition(lambda self: not self.world.running)
    @rule()
    def begin(self):
        self.world.begin()

    @rule(up=st.booleans())
    def set_channel(self, up):
        self.world.set_channel(up)

    @rule(name=st.sampled_from(["paused", "standby"]), on=st.booleans())
    def hold(self, name, on):
        setattr(self.world.schedule, name, on)

    @invariant()
    def guarantees_hold(self):
        self.world.check()


ScheduleMachine.TestCase.settings = settings(max_examples=form(100, 300), stateful_step_count=60)
test_any_sequence_of_events_keeps_g1_to_g4 = ScheduleMachine.TestCase
