import signal
import threading

import pytest

from stages.learning.training.interruption import Termination


@pytest.fixture
def handled():
    """Signals that reach a handler of the surroundings, as a stage or a flow may have set one."""
    seen = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGTERM, former)


def test_the_signal_waits_for_whoever_asks(handled: list[int]):
    with pytest.raises(SystemExit) as ended, Termination() as termination:
        assert not termination.asked
        signal.raise_signal(signal.SIGTERM)
        assert termination.asked
        assert handled == []
        termination.end()
    assert ended.value.code == 143
    assert handled == [signal.SIGTERM]


def test_nobody_asked_it_comes_at_the_end(handled: list[int]):
    with pytest.raises(SystemExit), Termination():
        signal.raise_signal(signal.SIGTERM)
    assert handled == [signal.SIGTERM]


def test_the_former_handler_is_put_back_also_after_an_error(handled: list[int]):
    with pytest.raises(KeyError), Termination() as termination:
        signal.raise_signal(signal.SIGTERM)
        raise KeyError
    assert termination.asked
    signal.raise_signal(signal.SIGTERM)
    assert handled == [signal.SIGTERM]


def test_where_it_is_ignored_it_stays_ignored():
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Termination() as termination:
            signal.raise_signal(signal.SIGTERM)
        assert not termination.asked
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, former)


@pytest.mark.parametrize("where", ["not awaited", "another thread"])
def test_elsewhere_nothing_is_touched(where: str, handled: list[int]):
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Termination(awaited=where != "not awaited"):
            seen.append(signal.getsignal(signal.SIGTERM))

    if where == "another thread":
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    else:
        work()
    assert seen == [before]
