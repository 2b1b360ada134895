"""The two stacks of Gated PixelCNN: what each sees, the walk over them, and what a class adds to the gates."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from test_autoregressive import noise, seen_by_outputs, trained
from torch import Tensor

from gentrain.data.dataset import in_memory
from gentrain.engine.assemble import build_system
from gentrain.errors import UserError
from gentrain.families.autoregressive import Autoregressive
from gentrain.models import gated_pixelcnn
from gentrain.models.gated_pixelcnn import GatedPixelCNN, TwoStacks, gate
from gentrain.types import Spec

GREY = Spec((1, 6, 7), ("a", "b", "c"))


def two_stacks(condition: int = 0, *, kernel: int = 3, first: int = 3, layers: int = 3, c: int = 1) -> TwoStacks:
    torch.manual_seed(0)
    chosen = GatedPixelCNN(width=4, layers=layers, hidden=6, kernel=kernel, first=first)
    net = chosen.causal(Spec((c, 6, 7)), 2 * c, colours=c, condition=condition)
    assert isinstance(net, TwoStacks)
    return net


def pictures(c: int = 1, n: int = 2) -> Tensor:
    return torch.rand(n, c, 6, 7, generator=torch.Generator().manual_seed(1)) * 2.0 - 1.0


def test_there_is_no_blind_spot() -> None:
    """Every earlier pixel within the reach of the kernels is seen: one row and one column for each of three layers."""
    system = trained("gated_pixelcnn", (1, 7, 12), "model.net.first=3", "model.net.layers=3")
    found = seen_by_outputs(system, torch.rand(1, 1, 7, 12) * 1.6 - 0.8)[:, 0, :, 0]
    for row, column in ((3, 4), (4, 7), (6, 0)):
        seen = {(j // 12, j % 12) for j in range(7 * 12) if found[row * 12 + column, j]}
        above = {(r, q) for r in range(row - 3, row) for q in range(max(column - 3, 0), min(column + 4, 12))}
        before = {(row, q) for q in range(max(column - 3, 0), column)}
        assert above | before <= seen
        assert all(r < row or (r == row and q < column) for r, q in seen)


def test_a_row_is_linked_to_the_one_below_alone() -> None:
    """With nothing but the vertical stack, a change shows from the next row on; without the shift in its own row."""
    net, x = two_stacks(), pictures()
    for layer in net.layers:
        torch.nn.init.zeros_(layer.horizontal.weight)  # type: ignore[arg-type, union-attr]
    other = x.clone()
    other[:, :, 2, 3] += 0.5

    def rows() -> list[int]:
        with torch.no_grad():
            return (net(other) - net(x)).abs().amax((0, 1, 3)).nonzero().flatten().tolist()

    assert rows() == [3, 4, 5]
    shifted = F.pad
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gated_pixelcnn.F, "pad", lambda v, sides: v if sides == (0, 0, 1, -1) else shifted(v, sides))
        assert rows() == [2, 3, 4, 5], "this test would not notice that the shift is gone"


def test_a_gate_is_tanh_times_sigmoid() -> None:
    x = torch.randn(2, 6, 1, 1)
    expected = [math.tanh(a) / (1.0 + math.exp(-b)) for a, b in zip(x[0, :3, 0, 0], x[0, 3:, 0, 0], strict=True)]
    assert gate(x)[0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("told", ["nothing", "vector", "map"])
@pytest.mark.parametrize(("kernel", "first", "layers"), [(3, 7, 4), (5, 3, 2), (3, 3, 1)])
def test_the_walk_gives_what_the_whole_network_gives(kernel: int, first: int, layers: int, told: str) -> None:
    for c in (1, 3):
        net = two_stacks(0 if told == "nothing" else 5, kernel=kernel, first=first, layers=layers, c=c)
        x = pictures(c)
        condition = {"nothing": None, "vector": torch.randn(2, 5), "map": torch.randn(2, 5, 6, 7)}[told]
        with torch.no_grad():
            whole, walk = net(x, condition), net.walk(torch.zeros_like(x), condition)
            for step, (row, column) in enumerate(walk.places):
                for colour in range(c):
                    found = walk.at(step).unflatten(1, (c, -1))[:, colour]
                    expected = whole[:, :, row, column].unflatten(1, (c, -1))[:, colour]
                    assert torch.allclose(found, expected, atol=1e-5), (row, column, colour)
                    walk.x[:, colour, row, column] = x[:, colour, row, column]


def test_the_walk_is_that_of_float32_whatever_autocast_says() -> None:
    net, x, told = two_stacks(5, layers=4), pictures(), torch.randn(2, 5)
    with torch.no_grad():
        whole = net(x, told)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not torch.allclose(net(x, told).float(), whole, atol=1e-5), "autocast would show"
            walk = net.walk(x, told)
            found = torch.stack([walk.at(step) for step in range(42)], dim=2).view(2, -1, 6, 7)
    assert found.dtype == torch.float32
    assert torch.allclose(found, whole, atol=1e-5)


def test_told_nothing_it_is_the_unconditional_network() -> None:
    plain, told, x = two_stacks(), two_stacks(condition=5), pictures()
    missing = told.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert {key.split(".")[2] for key in missing.missing_keys} == {"told_row", "told_above"}
    with torch.no_grad():
        for nothing in (torch.zeros(2, 5), torch.zeros(2, 5, 6, 7), None):
            assert torch.allclose(told(x, nothing), plain(x), atol=1e-6)
        for something in (torch.eye(5)[:2], torch.randn(2, 5, 6, 7)):
            assert (told(x, something) - plain(x)).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("kind", ["class", "spatial"])
def test_what_a_class_says_is_zero_for_no_class_and_other_for_another(kind: str) -> None:
    system = trained("cond_pixelcnn", (1, 6, 7), f"model/condition={kind}")
    of_class = system.nets["condition"](torch.tensor([0, 1]))
    assert of_class.shape == ((2, 2) if kind == "class" else (2, 4, 6, 7))
    assert not torch.allclose(of_class[0], of_class[1])
    if kind == "spatial":
        assert not system.nets["condition"].of(torch.zeros(1, 2)).any()  # type: ignore[operator]
        assert (of_class[0] - of_class[0].mean((1, 2), keepdim=True)).abs().max() > 1e-4, "the same everywhere"


@pytest.mark.parametrize("kind", ["class", "spatial"])
def test_the_likelihood_of_a_conditional_model_is_that_of_the_picture(kind: str) -> None:
    """Against sums by hand: over classes, by their shares; and over all pictures it is 1."""
    system = trained("cond_pixelcnn", (1, 3, 3), f"model/condition={kind}", "loss=bernoulli")
    system.give_class_counts(torch.tensor([30, 10]))
    x = torch.cartesian_prod(*[torch.tensor([0, 255], dtype=torch.uint8)] * 9).view(-1, 1, 3, 3)
    expected = torch.zeros(len(x), dtype=torch.float64)
    with torch.no_grad():
        found = system.log_likelihood(x)
        for label, share in ((0, 0.75), (1, 0.25)):
            told = system.nets["condition"](torch.full((len(x),), label))
            p = torch.sigmoid(system.nets["net"](x / 127.5 - 1.0, told))
            each = torch.where(x > 0, p, 1.0 - p).flatten(1).double().prod(1)
            expected += share * each
    assert torch.allclose(found.double().exp(), expected, rtol=1e-4)
    assert float(expected.sum()) == pytest.approx(1.0, abs=1e-5)


def test_data_without_classes_are_refused() -> None:
    from conftest import TINY

    from gentrain.compose import compose

    x, _ = noise((1, 6, 6))
    for kind in ("class", "spatial"):
        config = compose(["model=cond_pixelcnn", *TINY, f"model/condition={kind}"]).config
        with pytest.raises(UserError, match="gives no classes"):
            build_system(config, in_memory("noise", Spec((1, 6, 6)), (x, None), (x, None)), seed=0)


@pytest.mark.parametrize(("word", "said"), [("kernel=4", "odd"), ("layers=0", "at least 1"), ("width=0", "at least 1")])
def test_numbers_that_make_no_network_are_refused(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        trained("gated_pixelcnn", (1, 6, 6), f"model.net.{word}")


def test_the_class_moves_the_samples() -> None:
    system = trained("cond_pixelcnn", (1, 6, 6), "loss=bernoulli", steps=1)
    assert isinstance(system, Autoregressive)
    with torch.no_grad():
        for layer in system.nets["net"].layers:  # type: ignore[union-attr]
            layer.told_row.weight.mul_(20.0)  # type: ignore[union-attr, operator]
        first, second = (
            system.sample(4, labels=torch.full((4,), label), generator=torch.Generator().manual_seed(0))
            for label in (0, 1)
        )
    assert not torch.equal(first, second)
