"""Self-attention against a plain loop over places."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gentrain.errors import UserError
from gentrain.nets.attention import SelfAttention, at_sides
from gentrain.nets.critic import spectral_norm


def made(pool: bool) -> tuple[SelfAttention, torch.Tensor]:
    layer, x = SelfAttention(16, pool=pool), torch.randn(2, 16, 4, 6)
    for part in (layer.query, layer.key, layer.value, layer.out):
        nn.init.normal_(part.weight, std=0.5)
    nn.init.constant_(layer.gamma, 0.7)
    return layer, x


def looped(layer: SelfAttention, x: torch.Tensor, *, over_queries: bool = False) -> torch.Tensor:
    """Place by place; ``over_queries`` is the wrong softmax, over the places that ask."""
    f, g, h, o = (m.weight[:, :, 0, 0].double() for m in (layer.query, layer.key, layer.value, layer.out))
    x = x.double()
    result = x.clone()
    height, width = x.shape[2:]
    step = 2 if layer.pool else 1
    for b in range(len(x)):
        keys, values = [], []
        for i in range(0, height, step):
            for j in range(0, width, step):
                cells = x[b, :, i : i + step, j : j + step].flatten(1)
                keys.append((g @ cells).amax(1))
                values.append((h @ cells).amax(1))
        places = [(i, j) for i in range(height) for j in range(width)]
        scores = torch.stack([torch.stack([(f @ x[b, :, i, j]) @ k for k in keys]) for i, j in places])
        share = scores.exp() / scores.exp().sum(0 if over_queries else 1, keepdim=True)
        for (i, j), row in zip(places, share, strict=True):
            attended = sum(p * v for p, v in zip(row, values, strict=True))
            result[b, :, i, j] += layer.gamma.double() * (o @ attended)
    return result


@pytest.mark.parametrize("pool", [True, False])
def test_it_is_a_plain_loop_over_places(pool: bool) -> None:
    layer, x = made(pool)
    torch.testing.assert_close(layer(x).double(), looped(layer, x), rtol=1e-4, atol=1e-5)
    wrong = looped(layer, x, over_queries=True)
    assert float((layer(x).double() - wrong).detach().abs().max()) > 0.1


@pytest.mark.parametrize("pool", [True, False])
def test_rows_are_distributions_over_keys(pool: bool) -> None:
    layer, x = made(pool)
    rows = layer.attention_rows(x)
    assert rows.shape == (2, 24, 6 if pool else 24)
    assert rows.min() >= 0
    torch.testing.assert_close(rows.sum(2), torch.ones(2, 24))
    assert float((rows.sum(1) - 1).detach().abs().max()) > 0.1


def test_it_starts_as_the_identity_and_gamma_can_leave_it() -> None:
    layer, x = SelfAttention(16), torch.randn(2, 16, 4, 4)
    assert torch.equal(layer(x), x)
    layer(x).square().sum().backward()
    assert layer.gamma.grad is not None
    assert layer.gamma.grad != 0


def test_it_has_second_derivatives() -> None:
    layer, x = made(pool=True)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_spectral_norm_bounds_all_of_its_weights_after_fifty_passes() -> None:
    layer, x = made(pool=True)
    spectral_norm(layer)
    for _ in range(50):
        layer(x)
    layer.eval()
    for part in (layer.query, layer.key, layer.value, layer.out):
        assert math.isclose(float(torch.linalg.matrix_norm(part.weight.flatten(1), 2)), 1.0, rel_tol=0.05)


def test_a_side_that_no_map_has_is_refused() -> None:
    assert at_sides(None, 32, [16, 8]) is None
    assert at_sides("half", 32, [16, 8]) == 16
    assert at_sides(8, 32, [16, 8]) == 8
    with pytest.raises(UserError, match=r"model\.net\.attention=32: .*there are 8, 16;"):
        at_sides(32, 32, [16, 8])
