"""Learned compression: its normalisation, its density, its rates, and that what is written can be read."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, tiny
from test_contract import batches, ready
from torch import Tensor, nn

from gentrain import coding
from gentrain.data.dataset import in_memory
from gentrain.data.sources import digits
from gentrain.engine.sampling import at_rest
from gentrain.engine.system import System
from gentrain.errors import UserError
from gentrain.evaluation.rate_distortion import RateDistortion, codec_points, ms_ssim, psnr
from gentrain.evaluation.subject import Subject
from gentrain.models.compress import GDN, Dissimilarity, FactorizedDensity, GDNTransforms, SquaredLevels
from gentrain.report.pictures import single
from gentrain.types import Images, Spec, to_bytes, to_signed

needs_coder = pytest.mark.skipif(not coding.has_library(), reason="the range coder is an extra")


def shaken(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """With parameters away from their start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def trained(*overrides: str, steps: int = 60) -> System:
    config = tiny("model=compress", *overrides)
    system, data = ready(config)
    for batch in batches(config, data, steps):
        system.iterate(batch)
    return system


# Normalisation


def test_gdn_is_its_formula_and_its_iterated_inverse_gives_the_input_back() -> None:
    gdn = shaken(GDN(3)).double()
    inverse = GDN(3, inverse=True).double()
    inverse.load_state_dict(gdn.state_dict())
    assert isinstance(gdn, GDN)
    x = 2.0 * torch.randn(2, 3, 4, 5, dtype=torch.float64)
    y = gdn(x)
    roots = torch.empty_like(x)
    for b, i, h, w in np.ndindex(*x.shape):
        power = gdn.beta[i] + sum(gdn.gamma[i, j] * x[b, j, h, w] ** 2 for j in range(3))
        roots[b, i, h, w] = torch.sqrt(power)
    assert torch.allclose(y, x / roots)
    assert torch.allclose(inverse(x), x * roots)
    # x solves x = y sqrt(beta + gamma x^2); where that map contracts, its iteration from y, of which inverse GDN is the
    # first step, ends in x.
    small = 0.05 * x
    y = gdn(small)
    found = y
    for step in range(200):
        found = y * torch.einsum("ij,bjhw->bihw", gdn.gamma, found.square()).add(gdn.beta[:, None, None]).sqrt()
        if step == 0:
            assert torch.allclose(found, inverse(y))
    assert torch.allclose(found, small, atol=1e-9)


def test_beta_and_gamma_are_positive_whatever_the_parameters() -> None:
    gdn = GDN(4)
    with torch.no_grad():
        for parameter in gdn.parameters():
            parameter.normal_(std=10.0)
        gdn.root_beta.zero_()
    assert bool((gdn.beta > 0).all() and (gdn.gamma >= 0).all())
    assert torch.isfinite(gdn(torch.zeros(1, 4, 2, 2))).all()


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (20, 3), (128, 3)])
def test_transforms_keep_the_shape_at_any_size(size: int, channels: int) -> None:
    spec, net = Spec((channels, size, size)), GDNTransforms(width=4, stages=3)
    shape = net.latent_shape(spec, 5)
    y = net.analysis(spec, 5)(torch.rand(2, *spec.shape))
    assert y.shape == (2, *shape) == (2, 5, math.ceil(size / 8), math.ceil(size / 8))
    assert net.synthesis(spec, 5)(y).shape == (2, *spec.shape)


def test_latents_keep_their_digits_in_half_precision() -> None:
    spec = Spec((1, 16, 16))
    net = GDNTransforms(width=8, stages=2).analysis(spec, 4)
    x = torch.rand(4, 1, 16, 16) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        y = net(1000.0 * x)
    assert y.dtype == torch.float32
    assert bool((y != y.bfloat16().float()).any())


# The density


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_the_density_is_monotone_and_its_integral_and_its_bins_are_one(scale: float) -> None:
    density = shaken(FactorizedDensity(3), scale)
    assert isinstance(density, FactorizedDensity)
    y = torch.linspace(-400, 400, 64001, dtype=torch.float64).expand(3, -1)  # 80 to a unit
    with torch.no_grad():
        logits = density.logits(y)
        p = torch.exp2(-density.bits(y[None, :, None]))[0, :, 0]
    assert bool((logits.diff(dim=1) > 0).all())
    assert torch.allclose(torch.trapezoid(p, y, dim=1), torch.ones(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(p[:, ::80].sum(1), torch.ones(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(p[:, 40::80].sum(1), torch.ones(3, dtype=torch.float64), atol=1e-6), "wherever bins begin"
    c = torch.sigmoid(logits)
    middle = slice(40, -40)
    assert torch.allclose(p[:, middle], (c[:, 80:] - c[:, :-80]), atol=1e-12), "convolved with the unit box"


def test_rates_are_finite_however_far_the_tail() -> None:
    density = FactorizedDensity(1)
    y = torch.tensor([-1e5, -300.0, 0.0, 300.0, 1e5]).view(1, 1, 1, 5).requires_grad_()
    bits = density.bits(y)
    assert torch.isfinite(bits).all()
    (slope,) = torch.autograd.grad(bits.sum(), y)
    assert torch.isfinite(slope).all()
    assert bool((slope.flatten()[[0, 1]] < 0).all() and (slope.flatten()[[3, 4]] > 0).all()), "towards the mass"


def test_medians_halve_the_density_and_its_tables_are_its_bins() -> None:
    density = shaken(FactorizedDensity(4), 0.5).double()
    assert isinstance(density, FactorizedDensity)
    with torch.no_grad():
        density.biases[-1].add_(torch.tensor([-3.0, 0.0, 1.0, 6.0])[:, None, None])
        centres = coding.medians(density.logits, 4, torch.device("cpu"))
        assert torch.allclose(torch.sigmoid(density.logits(centres[:, None])), torch.tensor(0.5).double(), atol=1e-3)
        made = coding.tables(density.bits, centres)
        for m, (low, counts) in enumerate(zip(made.lows, made.counts, strict=True)):
            assert int(counts.sum()) == coding.TOTAL
            assert int(counts.min()) >= 1
            at = centres[m] + torch.arange(low, low + len(counts) - 1).double()
            exact = torch.exp2(-density.bits(at.expand(4, -1)[None, :, None]))[0, m, 0]
            assert np.allclose(counts[:-1] / coding.TOTAL, exact.numpy(), atol=1e-3)


def test_tables_are_made_on_the_cpu_in_float64_wherever_the_system_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    logits = FactorizedDensity.logits

    def watched(self: FactorizedDensity, y: Tensor) -> Tensor:
        seen.extend((y, *self.parameters()))
        return logits(self, y)

    monkeypatch.setattr(FactorizedDensity, "logits", watched)
    found = []
    for kind in (torch.float32, torch.bfloat16):  # as a device of another precision would have it
        system, _ = ready(tiny("model=compress"))
        with torch.no_grad():
            for parameter in system.nets["density"].parameters():
                parameter.copy_(parameter.bfloat16())
        system.nets["density"].to(kind)
        found.append(system.tables())  # type: ignore[operator]
        assert {(one.device.type, one.dtype) for one in seen} == {("cpu", torch.float64)}
        assert next(system.nets["density"].parameters()).dtype == kind, "a copy"
        assert all(one is not other for one in seen for other in system.nets["density"].parameters())
    assert found[0].digest == found[1].digest
    assert bool((found[0].centres != 0).any())


# MS-SSIM to train on


def smooth(size: int, channels: int = 1, n: int = 4) -> Tensor:
    """uint8 [n C size size]."""
    coarse = torch.rand(n, channels, 6, 6) * 255
    return nn.functional.interpolate(coarse, size, mode="bilinear").to(torch.uint8)


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (64, 1), (176, 1)])
def test_dissimilarity_is_one_minus_the_score(size: int, channels: int) -> None:
    x = smooth(size, channels)
    y = (x + 20 * torch.randn(x.shape)).clamp(0, 255).to(torch.uint8)
    found = Dissimilarity(weight=2.0).distortion(to_signed(y), x)
    assert torch.allclose(found.double(), 2.0 * (1.0 - ms_ssim(x, y)), atol=1e-3)
    assert float(found.min()) > 0.02
    assert Dissimilarity().distortion(to_signed(x), x).abs().max() < 1e-4


def test_dissimilarity_can_be_descended_from_anywhere() -> None:
    x = smooth(32)
    for start in (torch.zeros(4, 1, 32, 32), -to_signed(x), 0.3 * torch.randn(4, 1, 32, 32)):
        back = start.requires_grad_()
        (slope,) = torch.autograd.grad(Dissimilarity().distortion(back, x).sum(), back)
        assert bool(torch.isfinite(slope).all())
    back, losses = (0.3 * torch.randn(4, 1, 32, 32)).requires_grad_(), []
    optimizer = torch.optim.Adam([back], lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        loss = Dissimilarity().distortion(back, x).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_ms_ssim_trains_a_compressor_and_small_images_are_one_line() -> None:
    with pytest.raises(UserError, match=r"loss=ms_ssim: images of 32 pixels or more, and these are 8.*loss=levels"):
        ready(tiny("model=compress", "loss=ms_ssim"))
    system, data = ready(tiny("model=compress", "loss=ms_ssim", "data.size=32"))
    batch = data.train.take(torch.arange(8))
    losses = []
    for _ in range(40):
        torch.manual_seed(0)
        system.iterate(batch)
        losses.append(float(system.ledger.entries["distortion/unweighted"][-1]))
    assert losses[-1] < 0.8 * losses[0]
    assert all(math.isfinite(loss) for loss in losses)


# Rates


def test_noise_and_rounding_have_one_rate() -> None:
    """Random latents wide enough that the density is flat over a step; for their own density, fitted."""
    density = FactorizedDensity(2)
    optimizer = torch.optim.Adam(density.parameters(), lr=0.03)
    spread = torch.tensor([3.0, 8.0]).view(1, 2, 1, 1)
    for _ in range(300):
        optimizer.zero_grad()
        y = spread * torch.randn(256, 2, 1, 1) + 0.3
        density.bits(y + torch.rand_like(y) - 0.5).mean().backward()
        optimizer.step()
    y = (spread * torch.randn(20_000, 2, 1, 1) + 0.3).double()
    with torch.no_grad():
        noisy = float(density.bits(y + torch.rand_like(y) - 0.5).mean())
        centres = coding.medians(density.logits, 2, torch.device("cpu"))[:, None, None]
        rounded = float(density.bits(torch.round(y - centres) + centres).mean())
    entropy = float((0.5 * torch.log2(2 * math.pi * math.e * spread.double().square())).mean())
    assert abs(noisy / rounded - 1) < 0.02
    assert abs(rounded / entropy - 1) < 0.02, "of a Gaussian with steps of 1"


def test_the_rate_of_constant_images_falls_to_nearly_nothing() -> None:
    x = torch.full((32, 1, 8, 8), 77, dtype=torch.uint8)
    data = in_memory("grey", Spec((1, 8, 8)), (x, None), (x[:4], None))
    config = tiny("model=compress", "model.players.coder.optimizer.lr=0.02", "model.distortion_weight=0.001")
    system, _ = ready(config, data=data)
    with at_rest(system):
        before = float(system.code_bits(x).mean()) / 64  # type: ignore[operator]
    for _ in range(800):
        system.iterate(Images(x[:8]))
    with at_rest(system):
        after = float(system.code_bits(x).mean()) / 64  # type: ignore[operator]
        quality = psnr(x[:1], to_bytes(system.reconstruct(x[:1])))  # type: ignore[operator]
    assert before > 1.0
    assert after < 0.05
    assert float(quality) > 20.0


def test_every_parameter_has_a_gradient_of_both_terms_where_it_should() -> None:
    config = tiny("model=compress")
    system, data = ready(config)
    part = next(batches(config, data, 1))
    reached = {"rate_bpp": {"analysis", "density"}, "distortion": {"analysis", "synthesis"}}
    for term, nets in reached.items():
        system.zero_grad(set_to_none=True)
        system.objective(part)[term].backward()  # type: ignore[operator]
        for name, parameter in system.nets.named_parameters():
            has = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert has == (name.split(".")[0] in nets), f"{term}: {name}"


def test_distortion_is_in_levels_and_the_weight_is_lambda() -> None:
    x = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    back = torch.rand(3, 1, 8, 8) * 2 - 1
    by_hand = ((back.double() + 1) / 2 * 255 - x.double()).square().mean((1, 2, 3))
    assert torch.allclose(SquaredLevels().distortion(back, x).double(), by_hand, rtol=1e-5)
    ends = []
    for weight in (0.5, 1.0):
        system, _ = ready(tiny("model=compress", f"model.distortion_weight={weight}"))
        torch.manual_seed(1)
        ends.append(system.objective(Images(x)))  # type: ignore[operator]
    assert torch.allclose(2 * ends[0]["distortion"], ends[1]["distortion"])
    assert torch.equal(ends[0]["rate_bpp"], ends[1]["rate_bpp"])


def test_training_sees_uniform_noise_in_place_of_rounding() -> None:
    config = tiny("model=compress", "train.batch_size=64")
    system, data = ready(config)
    part = next(batches(config, data, 1))
    seen: dict[str, Tensor] = {}
    density, synthesis = system.nets["density"], system.nets["synthesis"]
    whole = density.bits

    def bits(y: Tensor) -> Tensor:
        seen["rate"] = y
        return whole(y)  # type: ignore[operator, no-any-return]

    density.bits = bits
    synthesis.register_forward_pre_hook(lambda module, given: seen.update(distortion=given[0]))
    system.objective(part)  # type: ignore[operator]
    noise = (seen["rate"] - system.nets["analysis"](part.signed)).detach().flatten()
    assert torch.equal(seen["rate"], seen["distortion"])
    assert float(noise.abs().max()) <= 0.5001
    assert abs(float(noise.var()) - 1 / 12) < 0.01
    assert abs(float(noise.mean())) < 0.03


def test_codes_are_within_half_a_step_of_the_latents_and_on_a_grid_about_the_medians() -> None:
    system, x = trained(steps=5), digits().test.all(50).x
    with torch.no_grad():
        system.nets["density"].biases[-1].add_(torch.linspace(-2, 2, 8)[:, None, None])  # type: ignore[union-attr, index]
    with at_rest(system):
        y = system.nets["analysis"](Images(x).signed)
        codes = system.encode(x).view_as(y)  # type: ignore[operator]
        medians = coding.medians(system.nets["density"].logits, 8, torch.device("cpu")).float()  # type: ignore[arg-type]
    assert float((codes - y).abs().max()) <= 0.5001
    steps = codes - medians[:, None, None]
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert float((medians - medians.round()).abs().max()) > 0.05, "the medians are no whole numbers here"


def test_each_change_of_weights_that_a_reader_needs_changes_the_mark() -> None:
    system = trained(steps=2)
    marks = {system.fingerprint()}  # type: ignore[operator]
    for name in ("synthesis", "density"):
        with torch.no_grad():
            next(system.nets[name].parameters()).add_(0.5)
        marks.add(system.fingerprint())  # type: ignore[operator]
    assert len(marks) == 3


# Real bits


@needs_coder
def test_real_bits_are_the_estimated_ones_and_each_picture_comes_back_exactly() -> None:
    system, x = trained(), digits().test.all().x
    with at_rest(system):
        streams = system.compress(x)  # type: ignore[operator]
        shown = to_bytes(system.reconstruct(x))  # type: ignore[operator]
        back = system.decompress(streams)  # type: ignore[operator]
        bits = system.code_bits(x).numpy()  # type: ignore[operator]
        assert torch.equal(back, shown)
        assert torch.equal(system.decompress(streams[7:9]), back[7:9]), "whichever pictures are beside it"  # type: ignore[operator]
        assert torch.equal(to_bytes(system.reconstruct(x[7:8])), back[7:8])  # type: ignore[operator]
    real = np.array([8 * len(stream) for stream in streams])
    assert bool((real <= 1.01 * bits + 8 * 2 * coding.WORD).all())
    assert bool((real >= 0.99 * bits - 8).all())
    assert len(set(streams)) > 300, "they are codes of different pictures"


@needs_coder
def test_one_long_code_needs_the_bits_of_the_density() -> None:
    """Without the words' granularity: within 1 %."""
    density = shaken(FactorizedDensity(3), 0.3)
    assert isinstance(density, FactorizedDensity)
    with torch.no_grad():
        centres = coding.medians(density.logits, 3, torch.device("cpu"))
        made = coding.tables(density.bits, centres)
        generator = np.random.default_rng(0)
        symbols = np.stack(
            [
                generator.choice(len(c) - 1, 5000, p=c[:-1] / c[:-1].sum()) + low
                for low, c in zip(made.lows, made.counts, strict=True)
            ]
        )
        y = centres[:, None] + torch.from_numpy(symbols).double()
        bits = float(density.bits(y[None, :, None]).sum())
    stream = made.encode(symbols)
    assert abs(8 * len(stream) / bits - 1) < 0.01
    assert np.array_equal(made.decode(stream, 5000), symbols)


@needs_coder
def test_symbols_outside_of_the_tables_are_escaped() -> None:
    density = FactorizedDensity(2)
    with torch.no_grad():
        made = coding.tables(density.bits, coding.medians(density.logits, 2, torch.device("cpu")))
    far = np.array([[0, -coding.FARTHEST, 5, coding.FARTHEST], [100_000, 0, -1, len(made.counts[1])]])
    assert np.array_equal(made.decode(made.encode(far), 4), far)


def test_a_file_is_refused_when_it_is_foreign_damaged_or_of_other_weights() -> None:
    streams, shape, mark = [bytes(range(8)), b"", bytes(4 * 200)], (1, 8, 8), b"weights!"
    blob = coding.pack(streams, shape, mark)
    assert coding.unpack(blob, "file", shape, mark) == streams
    for damaged, what in (
        (b"\x89PNG" + blob, "not a file"),
        (blob[:20], "not a file"),
        (blob[:-5] + blob[-4:], "damaged"),
        (blob[:40] + bytes([blob[40] ^ 1]) + blob[41:], "damaged"),
        (blob[:3] + b"\x09" + blob[4:], "format 9"),
    ):
        with pytest.raises(UserError, match=f"file: .*{what}|file: {what}"):
            coding.unpack(damaged, "file", shape, mark)
    with pytest.raises(UserError, match="other weights"):
        coding.unpack(blob, "file", shape, b"weights?")
    with pytest.raises(UserError, match="other weights"):
        coding.unpack(blob, "file", (1, 9, 8), mark)


def test_lengths_that_lie_are_refused() -> None:
    import struct
    import zlib

    head = coding.HEAD.pack(coding.MAGIC, coding.VERSION, bytes(8), 1, 8, 8, 4_000_000_000)
    for body in (head, head + b"\xff" * 50, head[:-4] + struct.pack("<I", 1) + b"\x05" + bytes(4)):
        with pytest.raises(UserError, match="lengths"):
            coding.unpack(body + struct.pack("<I", zlib.crc32(body)), "file", (1, 8, 8), bytes(8))


# Commands and scores


@needs_coder
def test_the_commands_write_and_read_pictures(run: Run, workplace: Path) -> None:
    assert run("size=tiny", "data=digits", "trainer=cpu", "model=compress", "name=c").code == 0
    x = digits().test.all(5).x
    for i, image in enumerate(x):
        single(image, workplace / "pictures" / f"{i}.png")
    wrote = run("compress", "run=outputs/c", "image=pictures", "out=all.gtc")
    assert wrote.code == 0, wrote.err
    size = (workplace / "all.gtc").stat().st_size
    assert f"{8 * size / (5 * 64):.4f} of the file" in wrote.out
    assert run("decompress", "run=outputs/c", "file=all.gtc", "out=back").code == 0
    assert len(list((workplace / "back").iterdir())) == 5
    assert run("compress", "run=outputs/c", "image=pictures/3.png", "out=one.gtc").code == 0
    assert run("decompress", "run=outputs/c", "file=one.gtc", "out=one.png").code == 0
    assert (workplace / "one.png").read_bytes() == (workplace / "back" / "000003.png").read_bytes()
    assert run("size=tiny", "data=digits", "trainer=cpu", "model=compress", "seed=5", "name=d").code == 0
    assert run("size=tiny", "data=digits", "trainer=cpu", "model=ae", "name=ae").code == 0
    single(torch.zeros(1, 9, 9, dtype=torch.uint8), workplace / "large.png")
    for words, what in (
        (("decompress", "run=outputs/d", "file=all.gtc", "out=o"), "other weights"),
        (("decompress", "run=outputs/c", "file=one.png", "out=o"), "not a file"),
        (("decompress", "run=outputs/c", "file=none", "out=o"), "cannot be read"),
        (("decompress", "run=outputs/c", "file=all.gtc", "out=o.png"), "5 pictures"),
        (("compress", "run=outputs/ae", "image=pictures", "out=o"), "does not compress"),
        (("compress", "run=outputs/c", "image=large.png", "out=o"), "9x9"),
        (("compress", "run=outputs/c", "image=pictures", "out=back"), "a folder"),
    ):
        ended = run(*words)
        assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended.err
        assert what in ended.err


def test_without_the_coder_rates_are_estimated_and_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = coding.importlib.import_module

    def absent(name: str) -> object:
        if name == "constriction":
            raise ModuleNotFoundError(name)
        return real(name)

    monkeypatch.setattr(coding.importlib, "import_module", absent)
    monkeypatch.setattr(coding, "has_library", lambda: False)
    system, data = ready(tiny("model=compress"))
    with at_rest(system):
        found = RateDistortion(limit=8).measure(Subject(data, system, lambda n: torch.empty(n), n=0))
        with pytest.raises(UserError, match=r"gentrain\[compress\]"):
            system.compress(data.test.all(1).x)  # type: ignore[operator]
    assert set(found) == {"rate_estimated_bpp", "compressed_psnr", "compressed_ms_ssim"}
    assert set(found) == set(RateDistortion().scores(system, data))


def test_scores_are_those_of_the_pictures() -> None:
    system, data = trained(), digits()
    with at_rest(system):
        found = RateDistortion(limit=None).measure(Subject(data, system, lambda n: torch.empty(n), n=0))
        x: Tensor = data.test.all().x
        back = to_bytes(system.reconstruct(x))  # type: ignore[operator]
        bits = float(system.code_bits(x).mean())  # type: ignore[operator]
    mse = (x.double() - back.double()).square().mean((1, 2, 3))
    assert found["compressed_psnr"] == pytest.approx(float((10 * torch.log10(255**2 / mse)).mean()))
    assert found["rate_estimated_bpp"] == pytest.approx(bits / 64)
    assert set(found) == set(RateDistortion().scores(system, data))


def test_codecs_keep_the_pictures_apart_and_spend_more_for_more() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (7, 3, 5, 5), generator=generator).float()
    x = nn.functional.interpolate(coarse, 20, mode="bilinear").to(torch.uint8)
    points = list(codec_points(x, (20, 90)))
    assert len(points) == 8
    for low, high in ((a, b) for a in points for b in points if (a.codec, a.layout) == (b.codec, b.layout)):
        if low.quality < high.quality:
            assert low.bpp < high.bpp
            assert low.psnr < high.psnr
    assert all(point.psnr > 20 for point in points), "tiles lie where they were put"
    single_files, sheets = ([p.bpp for p in points if p.layout == name] for name in ("single", "sheet"))
    assert all(a > b for a, b in zip(single_files, sheets, strict=True))
