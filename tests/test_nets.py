"""Architectures: shapes for every size, hand-counted parameters, gradients to every weight, and padding nobody sees."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.models.gan import GoodfellowMLP, Maxout
from gentrain.nets.architecture import Architecture
from gentrain.nets.dcgan import DCGAN
from gentrain.nets.layers import ACTIVATIONS, IMAGE_NORMS, INITS, VECTOR_NORMS, Crop, Pad
from gentrain.nets.mlp import MLP
from gentrain.nets.residual import Down, Residual, Stay, Up
from gentrain.objectives.penalties import clip_weights, gradient_norms, gradient_penalty, refuse_mixing
from gentrain.types import Spec

GOODFELLOW = GoodfellowMLP(
    generator_hidden=(16, 16),
    critic_hidden=(12, 12),
    pieces=5,
    input_dropout=0.2,
    dropout=0.5,
    generator_range=0.05,
    critic_range=0.005,
)
ARCHITECTURES: list[Architecture] = [
    DCGAN(width=4),
    DCGAN(width=4, decoder_norm="none", critic_norm="layer", kernel=5),
    DCGAN(width=4, decoder_norm="instance", critic_norm="instance", kernel=3, init_std=None),
    DCGAN(width=4, upsample="nearest", init_std=None),
    Residual(width=4),
    Residual(width=4, decoder_norm="none", critic_norm="layer", blocks=2, activation="leaky_relu"),
    Residual(width=4, decoder_norm="instance", critic_norm="instance"),
    MLP(hidden=(16, 8)),
    MLP(hidden=(16, 8), activation="leaky_relu", norm="batch", critic_norm="layer", dropout=0.1, init="he"),
    GOODFELLOW,
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images(size: int, channels: int = 3) -> Spec:
    return Spec((channels, size, size))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("net", ARCHITECTURES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 16, 28, 32, 64, 128])
def test_shapes_range_and_gradients_at_every_size(net: Architecture, channels: int, size: int) -> None:
    spec = images(size, channels)
    decoder, encoder = net.decoder(spec, 7), net.encoder(spec, 5)
    x = decoder(torch.randn(2, 7))
    assert x.shape == (2, *spec.shape)
    assert float(x.detach().abs().max()) <= 1.0
    code = encoder(x)
    assert code.shape == (2, 5)
    (code * torch.randn(2, 5)).sum().backward()
    for name, parameter in itertools.chain(decoder.named_parameters(), encoder.named_parameters()):
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("net", ARCHITECTURES)
@pytest.mark.parametrize("size", [16, 28])
def test_every_weight_matters(net: Architecture, size: int) -> None:
    """A batch of 32 gives each parameter tensor a gradient that is not zero."""
    decoder, encoder = net.decoder(images(size), 7), net.encoder(images(size), 1)
    encoder(decoder(torch.randn(32, 7))).square().sum().backward()
    for name, parameter in itertools.chain(decoder.named_parameters(), encoder.named_parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("net", ARCHITECTURES)
def test_decoder_makes_the_channels_asked_for_and_raw_numbers(net: Architecture) -> None:
    decoder = net.decoder(images(28), 7, channels=6, bounded=False)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.3)
        x = decoder(torch.randn(4, 7) * 100)
    assert x.shape == (4, 6, 28, 28)
    assert x.abs().max() > 1.0


@pytest.mark.parametrize("net", [MLP(hidden=(16,)), GOODFELLOW])
def test_dense_networks_take_vectors(net: Architecture) -> None:
    decoder, encoder = net.decoder(Spec((2,)), 7), net.encoder(Spec((2,)), 3)
    x = decoder(torch.randn(4, 7))
    assert x.shape == (4, 2)
    assert encoder(x).shape == (4, 3)
    assert not any(isinstance(layer, nn.Tanh | nn.Sigmoid) for layer in decoder.modules())
    assert net.decoder(Spec((2,)), 7, channels=4)(torch.randn(4, 7)).shape == (4, 4)


@pytest.mark.parametrize("c", [1, 3])
def test_dcgan_parameter_counts_at_64_pixels(c: int) -> None:
    w, z, k = 8, 100, 16
    net, spec = DCGAN(width=w), images(64, c)
    stages = 8 * w * 4 * w + 4 * w * 2 * w + 2 * w * w
    decoder = z * 16 * 8 * w + k * (stages + w * c) + c + 2 * (8 + 4 + 2 + 1) * w
    encoder = k * (c * w + stages) + w + 2 * (8 + 4 + 2) * w + 16 * 8 * w * 1 + 1
    assert count(net.decoder(spec, z)) == decoder
    assert count(net.encoder(spec, 1)) == encoder


@pytest.mark.parametrize("c", [1, 3])
def test_residual_parameter_counts_at_32_pixels(c: int) -> None:
    """By hand: two 3x3 convolutions in each block and a 1x1 on its way around; biases where there is no norm."""
    w, z = 6, 10
    net, spec = Residual(width=w, decoder_norm="batch", critic_norm="none"), images(32, c)
    widths = [w, 2 * w, 4 * w, 8 * w]  # 32, 16, 8, 4 pixels
    convolutions = sum(9 * n * n + 9 * n * m + n * m for n, m in itertools.pairwise(widths))
    encoder = 9 * c * w + w + convolutions + sum(n + m + m for n, m in itertools.pairwise(widths)) + 16 * 8 * w + 1
    assert count(net.encoder(spec, 1)) == encoder
    back = sum(9 * n * m + 9 * m * m + n * m for n, m in itertools.pairwise(widths[::-1]))
    gains = 2 * sum(n + m for n, m in itertools.pairwise(widths[::-1])) + 2 * w
    assert count(net.decoder(spec, z)) == z * 16 * 8 * w + back + gains + 9 * w * c + c


@pytest.mark.parametrize("block", [Down, Up, Stay])
def test_a_residual_block_is_its_way_around_when_its_convolutions_are_zero(block: type[Down | Up | Stay]) -> None:
    layer = block(3, 3 if block is Stay else 5, IMAGE_NORMS["batch"], "relu")
    nn.init.zeros_(layer.convolution2.weight)
    x = torch.randn(2, 3, 8, 8)
    if block is Stay:
        expected = x
    else:
        kernel = layer.around.weight
        full = torch.nn.functional.conv2d(x, kernel)
        blocks = full.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
        expected = blocks if block is Down else full.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(layer(x), expected)
    nn.init.ones_(layer.convolution2.weight)
    assert not torch.allclose(layer(x), expected)


@pytest.mark.parametrize(("c_in", "c_out", "side"), [(3, 5, 8), (4, 4, 2)])
def test_a_block_down_halves_the_side_by_means_of_both_ways(c_in: int, c_out: int, side: int) -> None:
    layer, x = (
        Down(c_in, c_out, IMAGE_NORMS["none"], "relu").double(),
        torch.randn(2, c_in, side, side, dtype=torch.float64),
    )

    def convolved(h: Tensor, by: nn.Conv2d) -> Tensor:
        """By a sum over the places of the kernel."""
        k = by.weight.shape[-1]
        wide = torch.zeros(*h.shape[:2], side + k - 1, side + k - 1, dtype=h.dtype)
        wide[:, :, k // 2 : k // 2 + side, k // 2 : k // 2 + side] = h
        parts = [
            torch.einsum("bchw,oc->bohw", wide[:, :, i : i + side, j : j + side], by.weight[:, :, i, j])
            for i in range(k)
            for j in range(k)
        ]
        assert by.bias is not None
        return torch.stack(parts).sum(0) + by.bias[:, None, None]

    full = convolved(convolved(x.clamp_min(0), layer.convolution1).clamp_min(0), layer.convolution2)
    full = full + convolved(x, layer.around)
    corners = [full[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    assert layer(x).shape == (2, c_out, side // 2, side // 2)
    torch.testing.assert_close(layer(x), torch.stack(corners).mean(0))


def test_blocks_add_residual_blocks_at_each_size() -> None:
    kinds = [
        [type(layer).__name__ for layer in Residual(width=2, blocks=blocks).encoder(images(16), 1)] for blocks in (1, 2)
    ]
    assert [name for name in kinds[0] if name in ("Down", "Stay")] == ["Down", "Down"]
    assert [name for name in kinds[1] if name in ("Down", "Stay")] == ["Down", "Stay", "Down", "Stay"]


def test_the_nearest_decoder_has_no_checkerboards() -> None:
    """Of a constant map a transposed convolution of kernel 3 makes a pattern of period 2 and the other one none."""
    spread = {}
    for upsample in ("nearest", "transposed"):
        net = DCGAN(width=4, kernel=3, decoder_norm="none", init_std=0.5, upsample=upsample)  # type: ignore[arg-type]
        last = [m for m in net.decoder(images(32), 7) if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)][-1]
        grown = torch.ones(1, last.in_channels, 8, 8)
        out = last(nn.Upsample(scale_factor=2)(grown) if upsample == "nearest" else grown)[..., 4:-4, 4:-4]
        spread[upsample] = float(out.detach().std(dim=(2, 3)).max())
    assert spread["nearest"] < 1e-5
    assert spread["transposed"] > 0.1
    decoder = DCGAN(width=4, upsample="nearest").decoder(images(64), 7)
    assert not any(isinstance(layer, nn.ConvTranspose2d) for layer in decoder.modules())
    assert sum(isinstance(layer, nn.Upsample) for layer in decoder.modules()) == 4
    assert {m.kernel_size for m in decoder.modules() if isinstance(m, nn.Conv2d)} == {(3, 3)}


def test_every_normalisation_has_a_gain_and_a_bias_per_channel() -> None:
    sizes = {norm: count(DCGAN(width=4, critic_norm=norm).encoder(images(32), 1)) for norm in IMAGE_NORMS}
    channels = 8 + 16
    assert sizes["batch"] == sizes["instance"] == sizes["layer"] == sizes["none"] + channels  # none: a bias instead


def test_dcgan_places_normalisation_as_the_paper_says() -> None:
    net = DCGAN(width=4)
    decoder, encoder = list(net.decoder(images(64), 7).children()), list(net.encoder(images(64), 1).children())
    assert [type(layer).__name__ for layer in decoder[-2:]] == ["ConvTranspose2d", "Tanh"]
    assert isinstance(encoder[1], nn.LeakyReLU)  # straight behind the first convolution
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in decoder) == 4
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in encoder) == 3
    assert [layer.negative_slope for layer in encoder if isinstance(layer, nn.LeakyReLU)] == [0.2] * 4


def test_dcgan_initialisation() -> None:
    for module in (DCGAN(width=32).decoder(images(64), 100), DCGAN(width=32).encoder(images(64), 1)):
        for name, p in module.named_parameters():
            if name.endswith("bias"):
                assert (p == 0).all()
            elif p.numel() > 1000:
                assert abs(float(p.detach().mean())) < 3e-3
                assert float(p.detach().std()) == pytest.approx(0.02, rel=0.1)
        gains = torch.cat([m.weight.detach() for m in module.modules() if isinstance(m, nn.BatchNorm2d)])
        assert float(gains.mean()) == pytest.approx(1.0, abs=0.01)
        assert float(gains.std()) == pytest.approx(0.02, rel=0.3)


def test_padding_repeats_the_border_and_cropping_undoes_it() -> None:
    x = torch.randn(2, 3, 28, 28)
    padded = Pad(28, 32)(x)
    assert torch.equal(padded, torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate"))
    assert torch.equal(Crop(28, 32)(padded), x)
    odd = torch.randn(1, 1, 25, 25)
    assert torch.equal(Crop(25, 32)(Pad(25, 32)(odd)), odd)
    assert torch.autograd.gradgradcheck(Pad(3, 8), torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("net", [DCGAN(width=4, critic_norm="none"), Residual(width=4, critic_norm="none")])
def test_28_pixels_are_32_with_a_repeated_border(net: DCGAN | Residual) -> None:
    """One and the same set of weights: what 28-pixel networks do is what 32-pixel ones do on padded images."""
    small, large = net.encoder(images(28), 1), net.encoder(images(32), 1)
    large.load_state_dict(dict(zip(large.state_dict(), small.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(small(x), large(Pad(28, 32)(x)))
    generator, full = net.decoder(images(28), 7).eval(), net.decoder(images(32), 7).eval()
    full.load_state_dict(generator.state_dict())
    z = torch.randn(2, 7)
    torch.testing.assert_close(generator(z), full(z)[..., 2:30, 2:30])
    corner = torch.zeros(2, 3, 28, 28)
    corner[..., 0, 0] = 1.0  # the border counts, but through its own pixels only
    assert not torch.equal(small(x + corner), small(x))


@pytest.mark.parametrize(
    "net", [make(width=4, critic_norm=norm) for make in (DCGAN, Residual) for norm in sorted(IMAGE_NORMS)]
)
def test_double_backward_and_which_critics_a_penalty_takes(net: DCGAN | Residual) -> None:
    critic = net.encoder(images(28), 1)
    gradient_penalty(critic, torch.randn(4, 3, 28, 28), torch.randn(4, 3, 28, 28)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in critic.parameters() if p.ndim > 1)
    if net.critic_norm == "batch":
        with pytest.raises(UserError, match="BatchNorm2d"):
            refuse_mixing(critic)
    else:
        refuse_mixing(critic)
        x = torch.randn(4, 3, 28, 28)
        torch.testing.assert_close(gradient_norms(critic, x)[:2], gradient_norms(critic, x[:2]), rtol=1e-3, atol=1e-6)


def test_penalty_gradient_through_in_place_activations_is_right() -> None:
    """Second derivatives against finite differences, in double precision and with layers out of place as in place."""
    critic = DCGAN(width=2, critic_norm="layer", init_std=0.3).encoder(images(8, 1), 1).double()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    weight = critic.get_parameter("0.weight")

    def slope(w: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(critic, {"0.weight": w}, (x,))
        (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return gradient.square().sum()

    assert torch.autograd.gradcheck(slope, weight.detach().requires_grad_(), atol=1e-4)


@pytest.mark.parametrize("make", [DCGAN, Residual])
def test_memory_format_changes_no_value(make: type[DCGAN | Residual]) -> None:
    net, x = make(width=8, critic_norm="instance"), torch.randn(4, 3, 28, 28)
    encoder, decoder = net.encoder(images(28), 3), net.decoder(images(28), 7).eval()
    z = torch.randn(4, 7)
    plain = encoder(x), decoder(z)
    encoder.to(memory_format=torch.channels_last)
    decoder.to(memory_format=torch.channels_last)
    torch.testing.assert_close(encoder(x.contiguous(memory_format=torch.channels_last)), plain[0])
    torch.testing.assert_close(decoder(z), plain[1])


def test_maxout_is_the_largest_of_its_pieces() -> None:
    layer, x = Maxout(6, 3, 5), torch.randn(4, 6)
    by_hand = torch.stack(
        [torch.stack([layer.linear(x)[:, 5 * u + k] for k in range(5)], 1).max(1).values for u in range(3)], 1
    )
    torch.testing.assert_close(layer(x), by_hand)
    assert count(layer) == (6 + 1) * 15


def test_goodfellow_dropout_is_in_the_critic_only_and_black_is_zero_inside() -> None:
    spec = images(8, 1)
    generator, critic = GOODFELLOW.decoder(spec, 7), GOODFELLOW.encoder(spec, 1)
    z = torch.randn(4, 7)
    assert torch.equal(generator(z), generator(z))
    rates = [layer.p for layer in critic.modules() if isinstance(layer, nn.Dropout)]
    assert rates == [0.2, 0.5, 0.5]
    black = -torch.ones(4, 1, 8, 8)
    assert critic(torch.zeros_like(black)).unique().numel() > 1
    assert (critic.eval()(black) == 0).all()  # all biases are 0, so nothing but black gives 0
    assert all(p.abs().max() <= 0.05 for p in generator.parameters())
    assert all(p.abs().max() <= 0.005 for p in critic.parameters())


def test_dense_decoder_mirrors_the_encoder() -> None:
    net, spec = MLP(hidden=(20, 10)), Spec((6,))
    widths = [layer.in_features for layer in net.encoder(spec, 2).modules() if isinstance(layer, nn.Linear)]
    mirrored = [layer.out_features for layer in net.decoder(spec, 2).modules() if isinstance(layer, nn.Linear)]
    assert widths == [6, 20, 10]
    assert mirrored == [10, 20, 6]


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("norm", sorted(VECTOR_NORMS))
@pytest.mark.parametrize("init", sorted(INITS))
def test_every_named_choice_of_the_dense_network_trains(activation: str, norm: str, init: str) -> None:
    encoder = MLP(hidden=(8,), activation=activation, norm=norm, init=init).encoder(Spec((4,)), 2)
    encoder(torch.randn(16, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: DCGAN().decoder(Spec((2,)), 7), "use model/net=mlp"),
        (lambda: DCGAN().encoder(Spec((2,)), 1), "use model/net=mlp"),
        (lambda: DCGAN().encoder(Spec((3, 8, 16)), 1), "square"),
        (lambda: DCGAN().encoder(images(4), 1), "5 pixels"),
        (lambda: DCGAN(critic_norm="batc"), r"critic_norm=batc: unknown \(did you mean batch\?\)"),
        (lambda: DCGAN(kernel=1), "kernel"),
        (lambda: DCGAN(width=0), "width"),
        (lambda: DCGAN(upsample="nearst"), "did you mean nearest"),  # type: ignore[arg-type]
        (lambda: Residual().decoder(Spec((2,)), 7), "use model/net=mlp"),
        (lambda: Residual().encoder(Spec((3, 8, 16)), 1), "square"),
        (lambda: Residual().encoder(images(4), 1), "5 pixels"),
        (lambda: Residual(decoder_norm="batc"), "decoder_norm=batc"),
        (lambda: Residual(critic_norm="batc"), "critic_norm=batc"),
        (lambda: Residual(activation="rely"), "did you mean relu"),
        (lambda: Residual(width=0), "width"),
        (lambda: Residual(blocks=0), "blocks"),
        (lambda: MLP(activation="rely"), "did you mean relu"),
        (lambda: MLP(norm="instance"), "model.net.norm"),
        (lambda: MLP(dropout=1.0), "dropout"),
        (lambda: MLP(hidden=(0,)), "hidden"),
    ],
)
def test_a_users_mistake_is_one_line(mistake: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        mistake()
    assert "\n" not in str(caught.value)


def test_clipping_leaves_running_statistics() -> None:
    critic = DCGAN(width=4).encoder(images(16), 1)
    critic(torch.randn(8, 3, 16, 16) * 5)
    before = {name: buffer.clone() for name, buffer in critic.named_buffers()}
    clip_weights(critic, 0.01)
    assert all(p.abs().max() <= 0.01 for p in critic.parameters())
    assert all(torch.equal(buffer, before[name]) for name, buffer in critic.named_buffers())


@pytest.mark.parametrize(("size", "strides"), [(8, [2, 1, 1]), (16, [2, 2, 1]), (32, [2, 2, 2]), (64, [2, 2, 2, 2])])
def test_small_images_get_further_stages_at_4x4(size: int, strides: list[int]) -> None:
    net = DCGAN(width=4, depth=3)
    spec = Spec((1, size, size))
    critic = [m for m in net.encoder(spec, 1).modules() if isinstance(m, nn.Conv2d)]
    decoder = [m for m in net.decoder(spec, 5).modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert [m.stride[0] for m in critic] == strides
    assert [m.stride[0] for m in decoder] == strides[::-1]
    assert [m.out_channels for m in critic] == [4 * 2**i for i in range(len(strides))]


@pytest.mark.parametrize("kernel", [4, 5])
def test_the_last_layer_of_grey_samples_is_the_same_convolution_by_other_means(
    kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = DCGAN(width=4, kernel=kernel).decoder(Spec((1, 28, 28)), 8)
    z = torch.randn(3, 8)
    for _ in range(3):
        net(z)
    net.eval()
    with_gradient = net(z).detach()
    asked: list[int] = []
    kept = torch.nn.functional.conv_transpose2d
    monkeypatch.setattr(
        torch.nn.functional, "conv_transpose2d", lambda *a, **k: (asked.append(len(a[1][0])), kept(*a, **k))[1]
    )
    with torch.no_grad():
        torch.testing.assert_close(net(z), with_gradient, rtol=1e-4, atol=1e-8)
        assert 1 not in asked
        assert torch.equal(net.train()(z), net.train()(z))
    assert 1 in asked, "training goes by torch's own kernel"
