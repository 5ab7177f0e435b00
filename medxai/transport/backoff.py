"""When a destination that does not answer is tried again."""

from __future__ import annotations

from medxai.identity import sha256_text


def pause(attempt: int, first: float, cap: float, *names: str) -> float:
    """Seconds before the next attempt: doubled each time up to a cap, spread by a quarter either way.

    The spread keeps many senders from calling a node that has just come back at the same moment. It is a function of
    the names and the attempt alone, so that a restart changes nothing.

    Args:
        attempt: how many attempts have failed, from 1.
        first: pause after the first.
        cap: longest pause before spreading.
        names: what waits, for example the destination and the study.
    """
    grown = min(cap, first * 2.0 ** min(max(attempt - 1, 0), 60))
    share = int(sha256_text(str(attempt), *names)[:8], 16) / 0xFFFFFFFF
    return grown * (0.75 + 0.5 * share)
