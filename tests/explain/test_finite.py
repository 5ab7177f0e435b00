from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medxai.errors import ExplainError
from medxai.explain.finite import all_finite
from medxai.explain.modes import evaluation, module_named


@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=9),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_as_looking_at_every_value(values: list[float], dtype: torch.dtype) -> None:
    given_values = torch.tensor(values).to(dtype)
    assert all_finite(given_values) == bool(torch.isfinite(given_values).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_sum_that_overflows_is_looked_at_again(dtype: torch.dtype) -> None:
    largest = torch.full((64,), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(largest)
    assert all_finite(-largest)
    for bad in (torch.nan, torch.inf, -torch.inf):
        largest[17] = bad
        assert not all_finite(largest)
    assert not all_finite(torch.tensor([torch.inf, -torch.inf], dtype=dtype))


def test_modes_come_back_whether_or_not_any_module_trains() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    network.eval()
    network[1][0].train()
    with evaluation(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [False, False, False, True, False]
    network.eval()
    with evaluation(network):
        assert not any(module.training for module in network.modules())


def test_modules_by_name() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout()))
    assert module_named(network, "1.0") is network[1][0]
    for name in ("", "1.1", "1.0.weight", "0.weight"):
        with pytest.raises(ExplainError, match="the network has no layer"):
            module_named(network, name)
