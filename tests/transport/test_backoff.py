"""Pauses: doubled, capped, spread, and the same after a restart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medxai.transport.backoff import pause


def test_pauses_double_up_to_the_cap() -> None:
    """Each within a quarter of its nominal length."""
    for attempt, nominal in enumerate((5, 10, 20, 40, 80, 160, 300, 300, 300), 1):
        assert 0.75 * nominal <= pause(attempt, 5.0, 300.0, "pacs", "k") <= 1.25 * nominal


def test_the_spread_depends_on_names_alone() -> None:
    """A restart changes nothing; many studies do not come back at one moment."""
    assert pause(3, 5.0, 300.0, "pacs", "k") == pause(3, 5.0, 300.0, "pacs", "k")
    moments = {round(pause(8, 5.0, 300.0, "pacs", str(number))) for number in range(200)}
    assert len(moments) > 80


@given(st.integers(0, 10**9), st.floats(0.01, 100), st.floats(0.01, 10**5))
def test_never_longer_than_the_cap_allows(attempt: int, first: float, cap: float) -> None:
    """After any number of failures."""
    assert 0 < pause(attempt, first, cap, "x") <= 1.25 * cap
