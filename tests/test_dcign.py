"""DC-IGN: what is clamped, which gradient takes its place, and that a factor can be read from the latent tied to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Run, tiny
from test_contract import ready
from torch import Tensor

from gentrain.data.stream import stream
from gentrain.engine.system import total
from gentrain.errors import UserError
from gentrain.models.dcign import ClampedLatents
from gentrain.models.vae import DiagonalGaussian
from gentrain.objectives.divergences import kl_standard_normal_terms
from gentrain.types import Images, Spec

SPEC = Spec((1, 8, 8), varied_names=("x", "intrinsic", "angle"))
TIED = {"angle": 2, "x": 1}
STRENGTH = 0.25


def grouped(varied: list[int], group: int) -> Images:
    rows = torch.tensor(varied).repeat_interleave(group)
    return Images(torch.zeros(len(rows), 1, 8, 8, dtype=torch.uint8), varied=rows, group=group)


class Steps(torch.autograd.Function):
    """Steps 4, 5 and 7 of the paper's procedure, for one group: [n J], and 1 where a number passes [J]. The bound is a
    mean over ``rows`` images where the paper has a sum, and so is the gradient in its place."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, passes: Tensor, rows: int) -> Tensor:
        mean = torch.stack([codes[:, j].sum() / len(codes) for j in range(codes.shape[1])])
        ctx.save_for_backward(codes - mean, passes)
        ctx.rows = rows
        return torch.stack([code * passes + mean * (1 - passes) for code in codes])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        difference, passes = ctx.saved_tensors
        return gradient * passes + STRENGTH / ctx.rows * difference * (1 - passes), None, None


def test_gradients_are_those_of_the_papers_steps() -> None:
    coupling = ClampedLatents(SPEC, 5, TIED, STRENGTH)
    batch = grouped([0, 2, 1, 0], 3)
    passes = {0: [0, 0, 1, 0, 0], 1: [0, 0, 0, 1, 1], 2: [1, 1, 0, 0, 0]}  # x; the rest; angle
    output = torch.randn(12, 10, requires_grad=True)
    weights = torch.randn(12, 10)

    def bound(codes: Tensor) -> Tensor:
        return (codes.sin() * weights).sum(1).mean() + kl_standard_normal_terms(*codes.chunk(2, dim=1)).sum(1).mean()

    clamped, terms = coupling(output, batch)
    (bound(clamped) + total(terms)).backward()  # type: ignore[no-untyped-call]
    found, output.grad = output.grad, None
    parts = [
        Steps.apply(output[3 * g : 3 * g + 3], torch.tensor(passes[kind] * 2, dtype=torch.float32), 12)
        for g, kind in enumerate([0, 2, 1, 0])
    ]
    torch.testing.assert_close(clamped, torch.cat(parts))
    bound(torch.cat(parts)).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, output.grad)


def test_accumulated_parts_give_the_gradient_of_the_whole() -> None:
    coupling = ClampedLatents(SPEC, 5, TIED, STRENGTH)
    batch, output = grouped([0, 2, 1, 0], 3), torch.randn(12, 10, requires_grad=True)
    gradients = []
    for count in (1, 2):
        output.grad = None
        for codes, part in zip(output.tensor_split(count), batch.chunks(count), strict=True):
            clamped, terms = coupling(codes, part)
            (((clamped.square().sum(1).mean()) + total(terms)) / count).backward()
        gradients.append(output.grad)
    torch.testing.assert_close(*gradients)


def test_the_decoder_sees_the_clamped_code_and_the_encoder_is_pulled_to_the_mean() -> None:
    config = tiny("model=dcign", "data.train_size=160", "data.group=8", "model.coupling.strength=1.0")
    system, data = ready(config)
    batch = next(stream(data.train, batch_size=16, seed=0))
    terms = system.objective(batch)  # type: ignore[operator]
    assert set(terms) == {"reconstruction", "kl", "invariance"}
    codes = system.encoder_output(batch.x).view(2, 8, -1)  # type: ignore[operator]
    table = system.coupling.passing[batch.varied.view(2, 8)[:, 0]]  # type: ignore[union-attr]
    held = ~table.repeat(1, 2)[:, None].expand_as(codes)
    spread = (codes - codes.mean(1, keepdim=True))[held].square().sum()
    torch.testing.assert_close(terms["invariance"], 0.5 * spread / 16)
    for name, parameter in system.nets["decoder"].named_parameters():
        assert torch.autograd.grad(terms["invariance"], parameter, retain_graph=True, allow_unused=True)[0] is None, (
            name
        )
    seen: list[Tensor] = []
    handle = system.nets["decoder"].register_forward_pre_hook(lambda net, given: seen.append(given[0]))
    with torch.no_grad():
        draw = DiagonalGaussian.draw
        DiagonalGaussian.draw = lambda self, output: self.mean(output)  # type: ignore[method-assign]
        try:
            system.objective(batch)  # type: ignore[operator]
        finally:
            DiagonalGaussian.draw = draw  # type: ignore[method-assign]
            handle.remove()
    z = seen[0].view(2, 8, -1)
    assert torch.equal((z == z[:, :1]).all(1), ~table)


@pytest.mark.parametrize(
    ("spec", "latent", "tied", "strength", "named"),
    [
        (Spec((1, 8, 8)), 5, TIED, 0.1, "no groups .*data=shapes .*angle: 1, x: 1, intrinsic"),
        (SPEC, 5, {"size": 1}, 0.1, r"tied\.size: no group .* x, intrinsic, angle"),
        (SPEC, 5, {"x": 0}, 0.1, r"tied\.x=0"),
        (SPEC, 5, TIED, -0.1, r"strength=-0\.1"),
        (SPEC, 3, TIED, 0.1, r"model\.latent=3: 3 .*intrinsic.* use 4"),
        (SPEC, 2, TIED, 0.1, r"model\.latent=2"),
        (Spec((1, 8, 8), varied_names=("x", "angle")), 5, TIED, 0.1, r"model\.latent=5: 2 .*tied to nothing.*latent=3"),
    ],
)
def test_what_cannot_be_tied_is_one_line(
    spec: Spec, latent: int, tied: dict[str, int], strength: float, named: str
) -> None:
    with pytest.raises(UserError, match=named) as refusal:
        ClampedLatents(spec, latent, tied, strength)
    assert "\n" not in str(refusal.value)


def test_data_without_groups_are_one_line(run: Run) -> None:
    ended = run("model=dcign", "data=digits", "size=tiny", "metrics=none")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "data.vary={" in ended.err
    ended = run("model=dcign", "data=shapes", "size=tiny", "train.batch_size=24", "data.vary={size: 1, intrinsic: 1}")
    assert (ended.code, "train.batch_size=24" in ended.err) == (2, True)


def test_a_batch_that_is_no_training_batch_is_refused() -> None:
    with pytest.raises(UserError, match="without groups"):
        ClampedLatents(SPEC, 5, TIED)(torch.zeros(4, 10), Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8)))
