"""Autoencoders without a prior: plain, denoising, contractive; tied weights."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import Run, tiny, words
from PIL import Image
from test_contract import batches, differences, ready
from torch import Tensor, nn

from gentrain.data.dataset import DataSet, in_memory
from gentrain.engine.assemble import rehearse
from gentrain.engine.ema import Ema
from gentrain.engine.player import parameter_counts
from gentrain.engine.sampling import at_rest
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.families.autoencoder import EncoderDecoder
from gentrain.models.cae import Contraction, KnowsJacobian
from gentrain.models.dae import AdditiveGaussian, Alternation, Masking, SaltAndPepper, score
from gentrain.nets.mlp import MLP
from gentrain.nets.tied import SigmoidLayer, TiedSigmoid
from gentrain.objectives.autoencoding import Pass
from gentrain.types import Images, Spec, to_signed

VECTORS = ("data=swissroll", "loss=squared", "metrics=reconstruction")


def gaussian_vectors(spreads: Tensor, n: int = 4096) -> DataSet:
    """Rotated N(0, diag(spreads^2)), float32 [n D], the training set as test set too."""
    d = len(spreads)
    rotation = torch.linalg.qr(torch.randn(d, d)).Q
    x = (torch.randn(n, d) * spreads) @ rotation.T
    return in_memory("gaussian", Spec((d,)), (x, None), (x[:64], None))


def autoencoder(*overrides: str, data: DataSet | None = None) -> tuple[EncoderDecoder, DataSet]:
    system, data = ready(tiny(*overrides), data=data)
    assert isinstance(system, EncoderDecoder)
    return system, data


# ------------------------------------------------------------------ the plain one


def test_a_linear_autoencoder_reaches_the_error_of_pca() -> None:
    """Baldi and Hornik 1989: the best linear code of k numbers spans the first k principal components."""
    data = gaussian_vectors(torch.tensor([3.0, 2.0, 1.0, 0.7, 0.5, 0.3]))
    config = tiny("model=ae", *VECTORS, "model.net.hidden=[]", "model.latent=2", "train.batch_size=256")
    config["model"]["players"]["autoencoder"]["optimizer"]["lr"] = 1e-2
    system, _ = ready(config, data=data)
    for batch in batches(config, data, 800):
        system.iterate(batch)
    x = data.train.all(None).x
    with at_rest(system):
        error = float((system.reconstruct(x) - x).square().sum(1).mean())  # type: ignore[operator]
    centred = (x - x.mean(0)).double()
    values = torch.linalg.eigvalsh(centred.T @ centred / len(x))  # ascending
    assert float(values[:4].sum()) <= error * (1 + 1e-4)
    assert error == pytest.approx(float(values[:4].sum()), rel=0.02)


@pytest.mark.parametrize("weight", [1.0, 0.05])
def test_the_squared_error_is_a_sum_over_pixels_and_a_mean_over_images(weight: float) -> None:
    system, data = autoencoder("model=ae", f"loss.weight={weight}")
    batch = data.test.all(5)
    x = batch.x.double() / 127.5 - 1.0
    back = torch.tanh(system.nets["decoder"](system.nets["encoder"](x.float()))).double().detach()
    by_hand = sum(float((x[i] - back[i]).pow(2).sum()) for i in range(5)) / 5
    terms = system.objective(batch)
    assert set(terms) == {"reconstruction"}
    assert float(terms["reconstruction"]) == pytest.approx(weight * by_hand, rel=1e-5)


@pytest.mark.parametrize("model", ["ae", "dae", "cae"])
@pytest.mark.parametrize("net", ["mlp_deep", "dcgan", "tied_sigmoid", "residual", "conv_up"])
def test_codes_and_reconstructions_have_their_shapes(model: str, net: str) -> None:
    system, data = autoencoder(f"model={model}", f"model/net={net}", "model.latent=6")
    system.prepare(total=1)
    x = data.test.all(4).x
    with at_rest(system):
        assert system.encode(x).shape == (4, 6)
        assert system.decode(torch.randn(3, 6)).shape == (3, 1, 8, 8)
        torch.testing.assert_close(system.reconstruct(x), system.decode(system.encode(x)))


# ------------------------------------------------------------------ the denoiser

GREY = torch.rand(64, 3, 16, 16) * 1.8 - 0.9
POINTS = torch.randn(20_000, 2) + 5.0


def test_gaussian_noise_has_its_moments() -> None:
    noise = AdditiveGaussian(0.6)(GREY) - GREY
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(noise.std()) == pytest.approx(0.6, rel=0.01)


@pytest.mark.parametrize("share", [0.1, 0.4])
@pytest.mark.parametrize(("x", "wiped"), [(GREY, -1.0), (POINTS, 0.0)], ids=["images", "vectors"])
def test_masking_wipes_its_share_and_nothing_else(x: Tensor, wiped: float, share: float) -> None:
    seen = Masking(share)(x)
    hit = seen != x
    assert (seen[hit] == wiped).all()
    assert float(hit.float().mean()) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(("x", "ends"), [(GREY, None), (POINTS, POINTS)], ids=["images", "vectors"])
def test_salt_and_pepper_go_to_the_ends_in_equal_shares(x: Tensor, ends: Tensor | None) -> None:
    low = torch.full_like(x, -1.0) if ends is None else ends.amin(0).expand_as(x)
    high = torch.full_like(x, 1.0) if ends is None else ends.amax(0).expand_as(x)
    seen = SaltAndPepper(0.3)(x)
    assert ((seen == x) | (seen == low) | (seen == high)).all()
    for end in (low, high):
        assert float((seen == end).float().mean()) == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize("kind", ["gaussian", "masking", "salt_and_pepper"])
def test_corruption_is_drawn_anew_in_training_and_absent_when_encoding(kind: str) -> None:
    system, data = autoencoder("model=dae", f"model/corruption={kind}")
    batch = data.train.all(8)
    first, second = system.forward_pass(batch), system.forward_pass(batch)
    assert not torch.equal(first.seen, second.seen)
    assert not torch.equal(first.seen, first.x)
    assert torch.equal(first.x, to_signed(batch.x))
    with torch.no_grad():
        assert torch.equal(system.encode(batch.x), system.nets["encoder"](to_signed(batch.x)))
        assert torch.equal(system.reconstruct(batch.x), system.reconstruct(batch.x))


class Shift:
    """A corruption that can be reckoned with: everything moves by one."""

    def __call__(self, x: Tensor) -> Tensor:
        return x + 1.0


def test_the_error_is_that_of_the_clean_data() -> None:
    """A network that does nothing errs by the noise itself; against the corrupted data it would not err at all."""
    system, _ = autoencoder("model=dae", *VECTORS)
    system.corruption = Shift()
    system.nets["encoder"], system.nets["decoder"] = nn.Identity(), nn.Identity()
    assert float(system.objective(Images(torch.randn(7, 2)))["reconstruction"]) == pytest.approx(2.0)


def test_a_linear_denoiser_learns_the_score_of_a_gaussian() -> None:
    """Of x ~ N(0, s^2 I) blurred by sigma the score is -x / (s^2 + sigma^2). A loss against the corrupted data would
    learn the identity, a score of 0."""
    spread, sigma = 1.5, 0.5
    data = gaussian_vectors(torch.full((3,), spread), n=8192)
    config = tiny("model=dae", *VECTORS, "model.net.hidden=[]", "model.latent=3", "train.batch_size=512")
    config["model"]["corruption"]["sigma"] = sigma
    config["model"]["players"]["autoencoder"]["optimizer"]["lr"] = 1e-2
    config["model"]["players"]["autoencoder"]["schedule"] = {"_target_": "gentrain.engine.player.Linear"}
    system, _ = ready(config, data=data)
    system.clock.total = 600
    for batch in batches(config, data, 600):
        system.iterate(batch)
    x = torch.randn(200, 3) * spread
    x.requires_grad_()
    blurred = torch.distributions.Normal(0.0, (spread**2 + sigma**2) ** 0.5)
    (truth,) = torch.autograd.grad(blurred.log_prob(x).sum(), x)
    with at_rest(system):
        found = score(system.reconstruct, x.detach(), sigma)  # type: ignore[arg-type]
    assert float((found - truth).square().mean() / truth.square().mean()) < 0.02


# ------------------------------------------------------------------ the contractive one


def way_through(encoder: nn.Module, x: Tensor) -> Pass:
    output = encoder(x)
    nothing = torch.zeros(())
    return Pass(Images(x), x, x, output, output, nothing, nothing, encoder, nn.Identity(), None)  # type: ignore[arg-type]


def by_autograd(encoder: nn.Module, x: Tensor) -> Tensor:
    """||df/dx||_F^2 of each sample, from its whole Jacobian."""
    alone = torch.func.vmap(torch.func.jacrev(lambda one: encoder(one[None])[0]))(x)
    return alone.flatten(1).square().sum(1)


@pytest.mark.parametrize("shape", [(7,), (2, 4, 4)])
def test_the_closed_form_is_the_jacobian(shape: tuple[int, ...]) -> None:
    encoder = TiedSigmoid().encoder(Spec(shape), 5)
    nn.init.normal_(encoder.get_parameter("bias"))
    x = torch.randn(6, *shape)
    assert isinstance(encoder, KnowsJacobian)
    exact = by_autograd(encoder, x)
    torch.testing.assert_close(Contraction(1.0).squared_jacobian(way_through(encoder, x)), exact, rtol=1e-5, atol=1e-5)
    assert float(Contraction(0.4)(way_through(encoder, x))) == pytest.approx(0.4 * float(exact.mean().detach()))


DEEP: list[Callable[[], nn.Module]] = [
    lambda: MLP(hidden=(12,), activation="tanh").encoder(Spec((4,)), 3),
    lambda: MLP(hidden=(12,), critic_norm="layer").encoder(Spec((4,)), 3),
]


@pytest.mark.parametrize("make", DEEP)
def test_the_estimate_is_right_on_average(make: Callable[[], nn.Module]) -> None:
    encoder, x = make(), torch.randn(5, 4)
    way, exact = way_through(encoder, x), by_autograd(encoder, x).detach()
    with torch.no_grad():
        draws = torch.stack([Contraction(1.0, probes=4).squared_jacobian(way) for _ in range(500)])  # [500 5]
    error = (draws.mean(0) - exact) / (draws.std(0) / 500**0.5)
    assert float(draws.std(0).min()) > 0
    assert float(error.abs().max()) < 4.0
    # 4 probes in one draw: the spread is that of v^T J J^T v, 2 ||J J^T||_F^2, over 4.
    jacobian = torch.func.vmap(torch.func.jacrev(lambda one: encoder(one[None])[0]))(x).detach()  # [5 3 4]
    spread = (2.0 * (jacobian @ jacobian.mT).square().sum((1, 2)) / 4).sqrt()
    torch.testing.assert_close(draws.std(0), spread, rtol=0.2, atol=0)


@pytest.mark.parametrize("net", ["tied_sigmoid", "mlp_deep", "dcgan"])
def test_the_penalty_trains_the_encoder_alone_and_contracts_it(net: str) -> None:
    """The decoder's own parameters get nothing from it, and a strong one flattens the encoder."""
    norms = []
    for weight in (0.0, 100.0):
        config = tiny("model=cae", f"model/net={net}", "loss=squared", "model.latent=6")
        config["model"]["regularisers"]["contraction"]["weight"] = weight
        config["model"]["players"]["autoencoder"]["optimizer"]["lr"] = 1e-2
        system, data = ready(config)
        batch = data.train.all(32)
        parameters = [p for p in system.nets.parameters() if p.requires_grad]
        term = system.objective(batch)["contraction"]  # type: ignore[operator]
        own = {id(p) for p in system.nets["encoder"].parameters()}
        for p, g in zip(parameters, torch.autograd.grad(term, parameters, allow_unused=True), strict=True):
            if id(p) not in own:
                assert g is None
            elif weight and p.ndim > 1:
                assert g is not None
                assert g.abs().sum() > 0
        for some in batches(config, data, 40):
            system.iterate(some)
        norms.append(float(by_autograd(system.nets["encoder"], to_signed(batch.x)).mean().detach()))
    assert norms[1] < 0.5 * norms[0]


@pytest.mark.parametrize("net", ["dcgan", "residual"])
def test_batch_normalisation_is_refused_under_the_penalty(net: str, run: Run) -> None:
    ended = run(*words("model=cae", f"model/net={net}", "model.net.critic_norm=batch", "data.size=16"))
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "encoder layer" in ended.err
    assert "critic_norm" in ended.err
    assert run("check", *words("model=ae", f"model/net={net}", "model.net.critic_norm=batch", "data.size=16")).code == 0


# ------------------------------------------------------------------ tied weights


def tied() -> tuple[System, DataSet]:
    config = tiny("model=cae", "model.latent=6")
    system, data = ready(config)
    for batch in batches(config, data, 5):
        system.iterate(batch)
    return system, data


def test_tied_weights_are_one_parameter_that_takes_one_step() -> None:
    system, data = tied()
    encoder, decoder = system.nets["encoder"], system.nets["decoder"][0]  # type: ignore[index]
    assert encoder.weight is decoder.weight
    assert [len(seat.parameters) for seat in system.seats] == [3]  # W, b, c
    (optimizer,) = system.optimizers_by_name.values()
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3
    assert int(optimizer.state[encoder.weight]["step"]) == 5
    x = to_signed(data.test.all(3).x).flatten(1)
    h = torch.sigmoid(x @ encoder.weight.T + encoder.bias)
    torch.testing.assert_close(system.nets["decoder"](h).flatten(1), h @ encoder.weight + decoder.bias)


def test_tied_weights_are_counted_once() -> None:
    system, _ = tied()
    counts = parameter_counts(dict(system.nets.items()))
    assert counts == {"encoder": 6 * 64 + 6, "decoder": 64}
    assert sum(counts.values()) == sum(parameter.numel() for parameter in system.nets.parameters())
    assert rehearse(tiny("model=cae", "model.latent=6")).endswith("encoder 390, decoder 64")


def test_untied_weights_would_be_four_parameters() -> None:
    net = TiedSigmoid()
    assert net.encoder(Spec((4,)), 2).weight is not net.decoder(Spec((4,)), 2).weight
    assert isinstance(net.encoder(Spec((4,)), 2), SigmoidLayer)


def test_weights_stay_tied_through_checkpoint_and_average() -> None:
    system, _ = tied()
    again, _ = tied()
    config = tiny("model=cae", "model.latent=6")
    fresh, _ = ready(config, seed=7)
    fresh.restore(system.state())
    assert fresh.nets["encoder"].weight is fresh.nets["decoder"][0].weight  # type: ignore[index]
    assert differences(fresh.state(), again.state()) == []
    averaged, data = ready(config)
    averaged.ema, averaged.average = Ema(0.9), None
    averaged.prepare(total=3)
    for batch in batches(config, data, 3):
        averaged.iterate(batch)
    assert averaged.average is not None
    copies = averaged.average.nets
    assert torch.equal(copies["encoder"].weight, copies["decoder"][0].weight)  # type: ignore[arg-type, index]


# ------------------------------------------------------------------ the figure


def manifold() -> ModuleType:
    """scripts/manifold.py as a module."""
    spec = importlib.util.spec_from_file_location("manifold", Path(__file__).parents[1] / "scripts" / "manifold.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_manifold_figure_shows_the_denoiser_go_back_and_the_plain_one_stay(tmp_path: Path) -> None:
    assert manifold().main(["--iterations=400", "--points=100", f"--out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "manifold.json").read_text(encoding="utf-8"))
    models = found["models"]
    assert list(models) == ["autoencoder", "denoising", "contractive", "variational"]
    assert all(one["distance_off_data"] == pytest.approx(found["data"]["off_data_by"]) for one in models.values())
    left = {name: one["distance_off_data_reconstructed"] for name, one in models.items()}
    assert left["denoising"] < 0.5 * left["autoencoder"]
    assert models["denoising"]["towards"] > 0.9
    assert models["denoising"]["distance_of_reconstructions"] < models["denoising"]["distance_of_data"]
    assert ["distance_of_samples" in one for one in models.values()] == [False, True, False, True]
    with Image.open(tmp_path / "pictures" / "manifold.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 50


def test_the_figure_measures_distances_to_the_circle() -> None:
    module = manifold()
    assert module.distance(torch.tensor([[0.0, 0.0], [0.0, -1.5], [0.6, 0.8]])).tolist() == pytest.approx([1, 0.5, 0])
    torch.testing.assert_close(module.distance(module.around(9, -0.25)), torch.full((9,), 0.25))


# ------------------------------------------------------------------ mistakes

MISTAKES: list[tuple[Callable[[], object], str]] = [
    (lambda: AdditiveGaussian(0.0), "sigma=0"),
    (lambda: AdditiveGaussian(float("inf")), "sigma=inf"),
    (lambda: Masking(0.0), "share=0"),
    (lambda: SaltAndPepper(1.0), "share=1"),
    (lambda: score(lambda x: x, torch.zeros(1, 2), 0.0), "sigma=0"),
    (lambda: Contraction(-1.0), "weight=-1"),
    (lambda: Contraction(float("nan")), "weight=nan"),
    (lambda: Contraction(1.0, probes=0), "probes=0"),
    (lambda: ready(tiny("model=vae", "model/net=tied_sigmoid")), "tied weights"),
    (lambda: ready(tiny("model=ae", "model/net=tied_sigmoid", "loss=gaussian", "loss.scale=pixel")), "tied weights"),
]


@pytest.mark.parametrize(("make", "named"), MISTAKES)
def test_a_mistake_is_one_line_that_names_it(make: Callable[[], object], named: str) -> None:
    with pytest.raises(UserError, match=named) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_what_the_penalty_looks_at_is_what_the_encoder_was_shown() -> None:
    encoder = TiedSigmoid().encoder(Spec((4,)), 3)
    clean, seen = torch.randn(2, 5, 4).unbind(0)
    way = replace(way_through(encoder, clean), seen=seen)
    torch.testing.assert_close(Contraction(1.0).squared_jacobian(way), by_autograd(encoder, seen))


def test_the_chain_has_the_variance_of_its_stationary_distribution() -> None:
    """x' = a (x + sigma e) comes to rest at the variance a^2 sigma^2 / (1 - a^2), wherever it began."""
    a, sigma = 0.8, 0.5
    generator, corruption = torch.Generator().manual_seed(0), AdditiveGaussian(sigma)
    start = torch.full((20_000, 2), 7.0)
    x = Alternation(60)(start, lambda x: corruption(x, generator), lambda x: a * x)
    assert float(x.var()) == pytest.approx(a**2 * sigma**2 / (1 - a**2), rel=0.03)
    assert abs(float(x.mean())) < 0.02
    once = Alternation(1)(start, lambda x: corruption(x, generator), lambda x: a * x)
    assert float(once.mean()) == pytest.approx(a * 7, abs=0.02), "it has not come to rest"


@pytest.mark.parametrize("kind", ["gaussian", "masking", "salt_and_pepper"])
def test_a_denoiser_samples_by_corrupting_and_restoring_in_turn(kind: str) -> None:
    system, _ = autoencoder("model=dae", f"model/corruption={kind}", "model.sampler.steps=3")
    with at_rest(system):
        found = system.sample(6, generator=torch.Generator().manual_seed(1))  # type: ignore[operator]
        generator = torch.Generator().manual_seed(1)
        x = torch.rand(6, *system.spec.shape, generator=generator) * 2 - 1
        for _ in range(3):
            seen = system.corruption(x, generator)  # type: ignore[operator]
            assert bool((seen != x).any())
            x = system.decode(system.nets["encoder"](seen))  # type: ignore[operator]
        assert torch.equal(found, x)
        torch.manual_seed(5)
        again = system.sample(6, generator=torch.Generator().manual_seed(1))  # type: ignore[operator]
        assert torch.equal(found, again), "no number comes from elsewhere"
        assert not torch.equal(found, system.sample(6, generator=torch.Generator().manual_seed(2)))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("word", "named"), [("model.corruption=null", "model=ae"), ("model.sampler.steps=0", "steps=0")]
)
def test_a_denoiser_without_noise_or_steps_is_one_line(word: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        autoencoder("model=dae", word)
