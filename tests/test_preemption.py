"""Signals that ask a run to stop."""

import os
import signal

import pytest

from chatbot_sft import preemption
from chatbot_sft.preemption import Preempted

CASES = [(signal.SIGTERM, Preempted), (signal.SIGUSR2, Preempted), (signal.SIGINT, KeyboardInterrupt)]


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number, _ in CASES}
    yield
    assert {number: signal.getsignal(number) for number, _ in CASES} == before


@pytest.mark.parametrize(("number", "expected"), CASES)
def test_a_signal_waits_for_the_end_of_the_step_and_a_second_one_does_not(monkeypatch, number, expected):
    reached = []
    with pytest.raises(expected), preemption.handled(), preemption.deferred():
        os.kill(os.getpid(), number)
        assert preemption.requested()
        reached.append("the end of the step")
    assert reached
    monkeypatch.setattr(preemption, "SAME", 0.0)
    with pytest.raises(expected), preemption.handled(), preemption.deferred():
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        pytest.fail("went on")
    assert not preemption.requested()


@pytest.mark.parametrize(("number", "expected"), CASES)
def test_where_there_is_no_step_it_ends_at_once(number, expected):
    with pytest.raises(expected), preemption.handled():
        os.kill(os.getpid(), number)
        pytest.fail("went on")


def test_ctrl_c_says_what_a_second_one_does(capfd):
    with pytest.raises(KeyboardInterrupt), preemption.handled(), preemption.deferred():
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err.strip() == preemption.HEARD.decode().strip()


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it(monkeypatch):
    """A shell's background job."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with preemption.handled(), preemption.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            assert not preemption.requested()
    finally:
        signal.signal(signal.SIGINT, before)
