"""The recurrent layers of PixelRNN against loops over pixels, and what each of them sees."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from gentrain.compose import compose
from gentrain.errors import UserError
from gentrain.models.pixelrnn_diag import DiagonalBiLstm, PixelRNNDiag
from gentrain.models.pixelrnn_row import PixelRNNRow, RowLstm
from gentrain.nets.recurrent import scan, skew, unskew
from gentrain.types import Spec

H, W, UNITS = 4, 6, 3
Places = set[tuple[int, int]]


def step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 3, gate by gate."""
    h = cell.shape[-1]
    o, f, i = (torch.sigmoid(gates[..., k * h : (k + 1) * h]) for k in range(3))
    cell = f * cell + i * torch.tanh(gates[..., 3 * h :])
    return o * torch.tanh(cell), cell


def row_by_pixels(layer: RowLstm, x: Tensor) -> Tensor:
    """[B h H W]: each pixel's state from those of the row above at and beside its column."""
    gates, weight = layer.input_to_state(x), layer.state_to_state[0]  # [B 4h H W], [k h 4h]
    b, _, height, width = x.shape
    zero = x.new_zeros(b, weight.shape[1])
    states: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for r, c in itertools.product(range(height), range(width)):
        sums = gates[:, :, r, c]
        for k in range(len(weight)):
            sums = sums + states.get((r - 1, c + k - len(weight) // 2), (zero, zero))[0] @ weight[k]
        states[r, c] = step(sums, states.get((r - 1, c), (zero, zero))[1])
    return torch.stack([states[place][0] for place in sorted(states)], dim=2).view(b, -1, height, width)


def direction_by_pixels(gates: Tensor, weight: Tensor) -> Tensor:
    """[B h H W] from left to right: each pixel's state from those of its upper and its left neighbour."""
    b, _, height, width = gates.shape
    zero = gates.new_zeros(b, weight.shape[1])
    states: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for r, c in itertools.product(range(height), range(width)):
        (above, _), (left, cell) = states.get((r - 1, c), (zero, zero)), states.get((r, c - 1), (zero, zero))
        states[r, c] = step(gates[:, :, r, c] + above @ weight[0] + left @ weight[1], cell)
    return torch.stack([states[place][0] for place in sorted(states)], dim=2).view(b, -1, height, width)


def diagonal_by_pixels(layer: DiagonalBiLstm, x: Tensor) -> Tensor:
    first, second = layer.input_to_state(x).chunk(2, dim=1)
    rightward = direction_by_pixels(first, layer.state_to_state[0])
    leftward = direction_by_pixels(second.flip(3), layer.state_to_state[1]).flip(3)
    out = rightward.clone()
    out[:, :, 1:] = out[:, :, 1:] + leftward[:, :, :-1]
    return out


def layers() -> list[nn.Module]:
    torch.manual_seed(3)
    return [RowLstm(UNITS, 1, 3), RowLstm(UNITS, 1, 5), DiagonalBiLstm(UNITS, 1)]


@pytest.mark.parametrize("index", [0, 1, 2], ids=["row", "row of 5", "diagonal"])
@pytest.mark.parametrize(("height", "width"), [(4, 6), (6, 3), (1, 4), (5, 1)])
def test_a_layer_and_its_gradients_equal_a_loop_over_pixels(index: int, height: int, width: int) -> None:
    layer = layers()[index].double()
    x = torch.randn(2, 2 * UNITS, height, width, dtype=torch.double, requires_grad=True)
    direction = torch.randn(2, UNITS, height, width, dtype=torch.double)
    plain = row_by_pixels(layer, x) if isinstance(layer, RowLstm) else diagonal_by_pixels(layer, x)
    out = layer(x)
    assert torch.allclose(out, plain, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(layer(x), out)
    of = [x, *layer.parameters()]
    expected = torch.autograd.grad((plain * direction).sum(), of, allow_unused=True, materialize_grads=True)
    found = torch.autograd.grad((out * direction).sum(), of)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-11)


@pytest.mark.parametrize("spans", [None, [(0, 1), (0, 2), (1, 4)]], ids=["whole lines", "parts of them"])
def test_the_gradient_of_the_scan_is_that_of_finite_differences(spans: list[tuple[int, int]] | None) -> None:
    gates = torch.randn(3, 2, 4, 1, 8, dtype=torch.double, requires_grad=True)
    weight = torch.randn(2, 3, 2, 8, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g, w: scan(g, w, before=1, spans=spans), (gates, weight))
    for t, (lo, hi) in enumerate(spans or []):
        outside = torch.ones(4, dtype=torch.bool)
        outside[lo:hi] = False
        assert not scan(gates, weight, before=1, spans=spans)[t][:, outside].any()


@pytest.mark.parametrize(("height", "width"), [(4, 6), (6, 4), (1, 5), (5, 1), (3, 3)])
def test_skewing_moves_row_r_by_r_places_and_can_be_undone(height: int, width: int) -> None:
    x = torch.randn(height, width, 2)
    skewed = skew(x)
    assert skewed.shape == (height, width + height - 1, 2)
    for r in range(height):
        assert torch.equal(skewed[r, r : r + width], x[r])
    assert int((skewed != 0).sum()) == x.numel()
    assert torch.equal(unskew(skewed), x)


def sees(function: nn.Module | DirectionOf, row: int, column: int) -> Places:
    """Places of the input [1 2h H W] that the output at (row, column) depends on, by moving one after the other."""
    x = torch.randn(1, 2 * UNITS, H, W, generator=torch.Generator().manual_seed(5)).double()
    found = set()
    with torch.no_grad():
        before = function(x)[0, :, row, column]
        for place in itertools.product(range(H), range(W)):
            other = x.clone()
            other[0, :, place[0], place[1]] += 0.5
            if not torch.equal(function(other)[0, :, row, column], before):
                found.add(place)
    return found


class DirectionOf:
    """One direction of a Diagonal BiLSTM, as a function to [B h H W]."""

    def __init__(self, layer: DiagonalBiLstm, which: int) -> None:
        self.layer, self.which = layer, which

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer.directions(x)[self.which].permute(2, 3, 0, 1)


def past(row: int, column: int) -> Places:
    return {(r, c) for r, c in itertools.product(range(H), range(W)) if (r, c) <= (row, column)}


PLACES = [(0, 0), (1, 0), (2, 3), (3, 5), (3, 1)]


@pytest.mark.parametrize("reach", [3, 5])
def test_a_row_lstm_sees_the_triangle_above_a_pixel_and_no_more(reach: int) -> None:
    torch.manual_seed(3)
    layer, half = RowLstm(UNITS, 1, reach).double(), reach // 2
    for row, column in PLACES:
        # Its own row by the masked convolution of the input, then one step up and half a kernel to either side; each
        # state adds its own convolution's reach to the left.
        triangle = {
            (r, c) for r, c in past(row, column) if column - half * (row - r + 1) <= c <= column + half * (row - r)
        }
        assert sees(layer, row, column) == triangle


def test_a_diagonal_bilstm_sees_the_whole_past_and_its_directions_a_part_each() -> None:
    layer = layers()[2].double()
    assert isinstance(layer, DiagonalBiLstm)
    everything = set(itertools.product(range(H), range(W)))
    for row, column in PLACES:
        assert sees(layer, row, column) == past(row, column)
        left = {(r, c) for r, c in everything if r <= row and c <= column}
        assert sees(DirectionOf(layer, 0), row, column) == left <= past(row, column)
        right = {(r, c) for r, c in everything if r <= row and c >= column}
        assert sees(DirectionOf(layer, 1), row, column) == right
        if row:
            assert sees(DirectionOf(layer, 1), row - 1, column) <= past(row, column), "what is added, one row lower"


class NotShifted(DiagonalBiLstm):
    """The known mistake: the second direction added where it is."""

    def forward(self, x: Tensor) -> Tensor:
        rightward, leftward = self.directions(x)
        return (rightward + leftward).permute(2, 3, 0, 1)


def test_a_second_direction_that_is_not_shifted_sees_later_pixels() -> None:
    torch.manual_seed(3)
    seen = sees(NotShifted(UNITS, 1).double(), 2, 3)
    assert seen - past(2, 3) == {(2, 4), (2, 5)}


@pytest.mark.parametrize("index", [0, 2], ids=["row", "diagonal"])
def test_colours_of_a_pixel_come_in_order_and_all_of_earlier_pixels_are_seen(index: int) -> None:
    torch.manual_seed(3)
    layer = (RowLstm(6, 3, 3) if index == 0 else DiagonalBiLstm(6, 3)).double()
    x = torch.randn(1, 12, 2, 3).double()
    with torch.no_grad():
        before = layer(x)[0, :, 1, 1].view(3, 2)
        for (r, c), group in itertools.product([(0, 1), (1, 0), (1, 1)], range(3)):
            other = x.clone()
            other[0, 4 * group : 4 * group + 4, r, c] += 0.5
            moved = (layer(other)[0, :, 1, 1].view(3, 2) != before).any(1).tolist()
            # A row LSTM's input in the same row is masked by colour at the pixel alone.
            assert moved == ([colour >= group for colour in range(3)] if (r, c) == (1, 1) else [True] * 3)


@pytest.mark.parametrize("kind", [PixelRNNRow(3, 2), PixelRNNRow(3, 2, reach=5), PixelRNNDiag(3, 2)])
@pytest.mark.parametrize("colours", [1, 3])
def test_a_walk_says_at_each_pixel_what_the_whole_network_says_there(
    kind: PixelRNNRow | PixelRNNDiag, colours: int
) -> None:
    """Weights are large and nothing is drawn: a wrong state anywhere shows. Each pixel is asked for twice, as it is
    between colours."""
    torch.manual_seed(3)
    net = kind.causal(Spec((3, H, W)), 6, colours=colours).double()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.5)
        x = torch.randn(2, 3, H, W).double()
        whole, walk = net(x), net.walk(x)  # type: ignore[operator]
        for number, (row, column) in enumerate(walk.places):
            for _ in range(2):
                assert torch.allclose(walk.at(number), whole[:, :, row, column], atol=1e-10), (row, column)


@pytest.mark.parametrize(
    ("name", "published"),
    [("pixelrnn_row_cifar10", {"bits_per_dim": 3.07}), ("pixelrnn_diag_cifar10", {"bits_per_dim": 3.0})],
)
def test_the_papers_setting_stands_beside_its_figure(name: str, published: dict[str, float]) -> None:
    config = compose([f"experiment={name}"]).config
    assert config["published"] == published
    net = config["model"]["net"]
    assert (net["kernel"], net["layers"], 3 * net["width"]) == (7, 12, pytest.approx(128, abs=1))
    assert (config["train"]["batch_size"], config["metrics"]["monitor"]) == (16, "nll_nats")
    likelihood = config["metrics"]["scores"]["likelihood"]
    assert (likelihood["limit"], likelihood["split"]) == (None, "test")


@pytest.mark.parametrize("words", [{"width": 0}, {"layers": 0}, {"kernel": 4}])
def test_sizes_that_make_no_network_are_refused(words: dict[str, int]) -> None:
    (name,) = words
    for kind in (PixelRNNRow, PixelRNNDiag):
        with pytest.raises(UserError, match=f"model.net.{name}"):
            kind(**{"width": 2, "layers": 1} | words)
    with pytest.raises(UserError, match=r"model\.net\.reach"):
        PixelRNNRow(2, 1, reach=2)


@pytest.mark.parametrize("index", [0, 2], ids=["row", "diagonal"])
def test_states_are_kept_in_full_precision_under_autocast(index: int) -> None:
    layer, x = layers()[index], torch.randn(2, 2 * UNITS, H, W)
    full = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
        out.sum().backward()
    assert out.dtype == torch.float32
    assert torch.allclose(out, full, atol=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
