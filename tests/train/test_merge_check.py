"""The noise that the limit of a merge follows is the model's own: small, and of rounding alone."""

import pytest
import torch
from torch import nn

from enrich.train import merge_check


def test_rounding_otherwise_moves_a_result_by_rounding_only() -> None:
    torch.manual_seed(0)
    first = nn.Linear(33, 64)
    layers = nn.Sequential(first, nn.GELU(), nn.Linear(64, 8, bias=False))
    given = torch.randn(5, 33)
    with torch.no_grad():
        nn.init.normal_(first.bias, std=10.0)  # counted twice or not at all it would show
        plain = layers(given)
        otherwise = merge_check.rounded_otherwise(layers, lambda: layers(given))
        assert not torch.equal(plain, otherwise)
        torch.testing.assert_close(otherwise, plain, rtol=1e-5, atol=1e-4)
        assert torch.equal(layers(given), plain)  # nothing of it stays


def test_a_layer_rounded_otherwise_is_right_and_not_the_same() -> None:
    layer = torch.nn.Linear(33, 5).to(torch.bfloat16)
    given = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    exact = layer.float()(given.float())
    layer = layer.to(torch.bfloat16)
    plain = layer(given)
    model = torch.nn.ModuleDict({"base_layer": layer, "other": torch.nn.ModuleDict({"base_layer": layer})})
    otherwise = merge_check.rounded_otherwise(model, lambda: layer(given))
    assert not torch.equal(plain, otherwise)
    torch.testing.assert_close(otherwise.float(), exact, rtol=0.02, atol=0.02)
    assert torch.equal(layer(given), plain)  # and all is as it was


def test_weights_are_moved_by_at_most_half_a_unit_in_their_last_place_and_alike_at_every_call() -> None:
    layer = torch.nn.Linear(64, 32).to(torch.bfloat16)
    given = torch.ones(1, 64, dtype=torch.bfloat16)
    errors = merge_check._weight_errors(layer, given, 1).detach()
    assert torch.equal(errors, merge_check._weight_errors(layer, given, 1))
    assert not torch.equal(errors, merge_check._weight_errors(layer, given, 2))
    weights = layer.weight.detach().T
    unit = (torch.nextafter(weights.abs(), torch.tensor(torch.inf, dtype=torch.bfloat16)) - weights.abs()).float()
    assert ((errors.float().abs() / unit) <= 0.501).all()
    assert (errors.float().abs() / unit).mean() == pytest.approx(0.25, abs=0.02)
