"""The noise that the limit of a merge follows is the model's own: small, and of rounding alone."""

import torch
from torch import nn

from enrich.train.merge_check import rounded_otherwise


def test_rounding_otherwise_moves_a_result_by_rounding_only() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(33, 64), nn.GELU(), nn.Linear(64, 8, bias=False))
    given = torch.randn(5, 33)
    with torch.no_grad():
        nn.init.normal_(layers[0].bias, std=10.0)  # counted twice or not at all it would show
        plain = layers(given)
        otherwise = rounded_otherwise(layers, lambda: layers(given))
        assert not torch.equal(plain, otherwise)
        torch.testing.assert_close(otherwise, plain, rtol=1e-5, atol=1e-4)
        assert torch.equal(layers(given), plain)  # nothing of it stays
