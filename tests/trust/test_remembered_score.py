"""A set is asked once, also over an interruption."""

from __future__ import annotations

import numpy as np
import pytest

from medxai.trust.network_ablation import NetworkAblation
from medxai.trust.remembered_score import Remembered

SETS = [np.arange(11) == place for place in (2, 0, 2, 9, 5)]


def test_an_interrupted_run_asks_only_the_rest(tmp_path):
    asked = []

    def failing(removed):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(int(removed.argmax()))
        return [asked[-1], 0.1]

    path = tmp_path / "answers.safetensors"
    first = Remembered(failing, path, "a")
    with pytest.raises(KeyboardInterrupt):
        first.ask(SETS)
    first.keep()
    assert asked == [2, 0]

    told, later = [], []

    def counting(removed):
        later.append(int(removed.argmax()))
        return [later[-1], 0.1]

    again = Remembered(counting, path, "a")
    again.ask(SETS, lambda done, of: told.append((done, of)))
    assert later == [9, 5]
    assert told == [(3, 4), (4, 4)]
    np.testing.assert_array_equal(again(SETS[0]), [2, 0.1])
    written = path.read_bytes()
    fresh = Remembered(lambda removed: [removed.argmax(), 0.1], tmp_path / "whole.safetensors", "a")
    fresh.ask(SETS)
    assert (tmp_path / "whole.safetensors").read_bytes() == written  # as if nothing had happened

    later.clear()
    Remembered(counting, path, "another model").ask(SETS)
    assert later == [2, 0, 9, 5]
    path.write_bytes(path.read_bytes()[:40])
    later.clear()
    Remembered(counting, path, "another model").ask(SETS)
    assert later == [2, 0, 9, 5]


@pytest.mark.parametrize("modes", [("without",), ("without", "only")])
def test_what_is_said_beforehand_is_all_that_is_asked(modes):
    names = ["A"] * 2 + ["B"] * 3 + ["C"] * 3 + [""] * 4
    source = np.random.default_rng(0)
    weights = source.normal(size=(7, 12))
    plan = NetworkAblation(lambda removed: [0.0], names).sets(modes, 200, 4)
    known = {np.packbits(removed).tobytes() for removed in plan}
    ablation = NetworkAblation(lambda removed: weights @ ~removed, names)
    for mode in modes:
        ablation.effects(mode, 200, 4)
    ablation.synergy()
    ablation.shapley()
    assert ablation.asked == len(known)
    assert {np.packbits(removed).tobytes() for removed in plan} == set(ablation._rows)
