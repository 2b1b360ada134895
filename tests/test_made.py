"""MADE's masks against derivatives, its walk in any order, and the network without a hidden layer against logistic
regressions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from test_autoregressive import trained
from torch import Tensor

from gentrain.engine.sampling import at_rest
from gentrain.errors import UserError
from gentrain.models.made import MADE, MaskedDense
from gentrain.types import Spec


def dense(shape: tuple[int, int, int], outputs: int, colours: int, **chosen: object) -> MaskedDense:
    torch.manual_seed(0)
    net = MADE(**{"hidden": [40, 30], **chosen}).causal(Spec(shape), outputs, colours=colours)  # type: ignore[arg-type]
    assert isinstance(net, MaskedDense)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)  # no weight is 0
    return net


def jacobian(net: MaskedDense, shape: tuple[int, int, int]) -> Tensor:
    """Whether an output depends on an input: bool [outputs*H*W C*H*W]."""
    x = torch.rand(1, *shape) * 2.0 - 1.0
    found = torch.autograd.functional.jacobian(lambda v: net(v)[0].flatten(), x)  # type: ignore[no-untyped-call]
    return found.flatten(1).abs() > 0  # type: ignore[no-any-return]


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(("colours", "outputs"), [(1, 4), (3, 6)])
@pytest.mark.parametrize("order", ["raster", "shuffled"])
def test_outputs_depend_on_what_comes_before_them_and_on_nothing_else(
    order: str, colours: int, outputs: int, direct: bool
) -> None:
    shape = (3, 3, 4)
    net = dense(shape, outputs, colours, order=order, masks=2, direct=direct, activation="tanh").eval()
    turn = {place: step for step, place in enumerate(net.places)}
    assert (net.places == sorted(net.places)) == (order == "raster")
    seen = jacobian(net, shape).view(outputs, 3, 4, 3, 3, 4)
    before = torch.zeros_like(seen)
    for k, (r, q), c, (i, j) in (
        (k, here, c, there) for k in range(outputs) for here in turn for c in range(3) for there in turn
    ):
        group = k // (outputs // colours)
        before[k, r, q, c, i, j] = (turn[i, j], c if colours > 1 else 0) < (turn[r, q], group if colours > 1 else 0)
    assert not (seen & ~before).any()
    if direct:
        assert torch.equal(seen, before)
    else:
        assert (seen & before).sum() > 0.3 * before.sum(), "hidden units lead from input to output"


def test_masks_are_draws_and_a_training_step_takes_one_of_them() -> None:
    shape = (1, 3, 4)
    net, x = dense(shape, 1, 1, masks=3), torch.randn(2, 1, 3, 4)
    seen = [torch.cat(net.seen(mask)) for mask in range(3)]
    assert not torch.equal(seen[0], seen[1])
    for mask in range(3):
        first, second = net.seen(mask)
        assert second.min() >= first.min()
        assert first.max() <= 12 - 2, "a unit that sees the last number but one is heard by the last output"
    each = torch.stack([net._through(x.flatten(1), mask) for mask in range(3)])
    assert torch.allclose(net.eval()(x).flatten(1), each.mean(0), atol=1e-5)
    net.train()
    drawn = [net(x).flatten(1) for _ in range(40)]
    which = [[torch.equal(one, tower) for tower in each] for one in drawn]
    assert all(sum(row) == 1 for row in which)
    assert all(any(column) for column in zip(*which, strict=True))


@pytest.mark.parametrize("words", ["masks=3", "order=shuffled", "direct=false", "hidden=[]", "hidden=[7]"])
@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 3, 3)], ids=["grey", "colour"])
def test_a_walk_draws_what_the_whole_network_draws(words: str, shape: tuple[int, int, int]) -> None:
    for loss in ("bernoulli", "logistic_mixture"):
        system = trained("made", shape, f"model.net.{words}", f"loss={loss}")
        x, known = torch.zeros(3, *shape), torch.zeros(3, *shape, dtype=torch.bool)
        with at_rest(system):
            quick, plain = (
                system.fill(x, known, cached=cached, generator=torch.Generator().manual_seed(7))
                for cached in (True, False)
            )
        assert torch.allclose(quick, plain, atol=1e-5)
        assert len(quick.unique()) > 1


def chained(n: int = 400) -> Tensor:
    """Binary pictures uint8 [n 1 2 3] whose pixels lean towards the one before."""
    generator = torch.Generator().manual_seed(3)
    x = torch.zeros(n, 6)
    for i in range(6):
        lean = 0.3 if i == 0 else 1.2 * (2.0 * x[:, i - 1] - 1.0)
        x[:, i] = torch.bernoulli(torch.sigmoid(torch.as_tensor(lean).expand(n)), generator=generator)
    return x.mul(255).to(torch.uint8).view(n, 1, 2, 3)


def test_without_a_hidden_layer_each_pixel_is_a_logistic_regression() -> None:
    """By the formula with its own weights, and at the optimum against scikit-learn's."""
    system = trained("made", (1, 2, 3), "model.net.hidden=[]", "loss=bernoulli")
    net, x = system.nets["net"], chained()
    assert sorted(dict(net.named_parameters())) == ["bias", "direct.weight"]
    weight, bias = net.direct.weight.detach().numpy(), net.bias.detach().numpy()  # type: ignore[union-attr, operator]
    for image in x[:5]:
        bits = image.flatten().numpy() > 0
        signs = np.where(bits, 1.0, -1.0)
        nats = 0.0
        for i in range(6):
            logit = bias[i] + sum(weight[i, j] * signs[j] for j in range(i))
            nats -= math.log1p(math.exp(-logit if bits[i] else logit))
        with torch.no_grad():
            assert float(system.log_likelihood(image[None])) == pytest.approx(nats, rel=1e-5)

    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -system.log_likelihood(x).mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    flat = (x.flatten(1).numpy() > 0).astype(float)
    share = flat[:, 0].mean()
    best = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    for i in range(1, 6):
        fit = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(flat[:, :i], flat[:, i])
        best -= fit.predict_log_proba(flat[:, :i])[np.arange(len(flat)), flat[:, i].astype(int)].mean()
    assert float(loss().detach()) == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hidden=[0]"], "at least 1 unit"),
        (["masks=0"], "at least 1"),
        (["order=spiral"], "order=spiral"),
        (["activation=rely"], "did you mean relu"),
        (["hidden=[]", "direct=false"], "nothing leads"),
    ],
)
def test_choices_that_make_no_network_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        trained("made", (1, 3, 3), *(f"model.net.{word}" for word in words))


def test_it_takes_no_condition() -> None:
    with pytest.raises(UserError, match="gated_pixelcnn does"):
        trained("made", (1, 3, 3), "+model/condition=class")
