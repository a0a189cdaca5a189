from __future__ import annotations

from node.persistence.breaker import Breaker, worst


def test_it_opens_after_failures_in_a_row_and_tries_again_after_the_pause() -> None:
    breaker = Breaker(failures_max=3, pause_s=10)
    for now in (1, 2):
        breaker.failed(now)
        assert breaker.state(now) == "closed"
    breaker.failed(3)
    assert breaker.state(3) == "open"
    assert not breaker.allows(12.9)
    assert breaker.state(13) == "half_open"
    assert breaker.allows(13)


def test_one_failure_while_half_open_opens_it_again() -> None:
    breaker = Breaker(failures_max=2, pause_s=10)
    breaker.failed(0)
    breaker.failed(0)
    breaker.failed(10)
    assert breaker.state(19.9) == "open"
    assert breaker.state(20) == "half_open"


def test_one_success_forgets_all_failures() -> None:
    breaker = Breaker(failures_max=2, pause_s=10)
    breaker.failed(0)
    breaker.failed(0)
    breaker.succeeded()
    breaker.failed(1)
    assert breaker.state(1) == "closed"


def test_the_worst_of_many_is_shown() -> None:
    assert worst([]) == "closed"
    assert worst(["closed", "half_open", "closed"]) == "half_open"
    assert worst(["half_open", "open", "closed"]) == "open"
