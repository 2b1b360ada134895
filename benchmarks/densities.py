"""Time of a training step of models with a density: ours beside those of normflows, nflows and zuko, of the same
sizes, and beside a PixelCNN as its paper draws it.

    python benchmarks/densities.py [glow] [realnvp] [gated_pixelcnn] [--rounds N] [--steps N] [--threads N]
                                   [--clock cpu] [--precision bf16-mixed]

``glow``: 2 levels of 4 steps with 64 channels inside, 28x28 grey, batch 32; beside ``normflows.MultiscaleFlow`` of
GlowBlocks with actnorm in their networks (ours has a learned split besides, theirs a mean and a scale for each number
of the code). ``realnvp``: 64-dimensional vectors, 8 affine couplings between halves with networks of 128-128, batch
256. ``gated_pixelcnn``: 6 layers of 32 features, 28x28 grey, 256 levels, batch 16; ``plain`` is the same function with
the same weights, built from masked k x k convolutions in float32, a skip for each layer. Ours is ``System.iterate``,
all of a training step but the data and the log: fused Adam, the sums of the terms, the check for nan, and
``--precision``. The others are in float32 and have Adam as torch makes it by default, and no check. Peers that are not
installed are left out (``pip install normflows==1.7.3 nflows==0.14 zuko==1.6.0``).
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, get_args

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.engine import precision
from gentrain.engine.player import Moves
from gentrain.engine.system import System
from gentrain.families.autoregressive import Autoregressive
from gentrain.families.flow import Flow
from gentrain.models.gated_pixelcnn import GatedLayer, GatedPixelCNN, TwoStacks
from gentrain.models.glow import Glow
from gentrain.models.realnvp import RealNVP
from gentrain.nets.flows.base import LearnedTop, StandardBase
from gentrain.nets.flows.dequantisation import Uniform
from gentrain.objectives.pixel_heads import Categorical
from gentrain.types import Images, Spec

RATE = 1e-3
Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """``peers``: of a batch makes the peer's loss, by name; ``goals``: the least speed of ours over theirs."""

    spec: Spec
    batch: int
    ours: Callable[[Spec, Moves], System]
    peers: dict[str, Callable[[Spec], tuple[nn.Module, Callable[[Tensor], Tensor]]]]
    goals: dict[str, float]
    steps: int


def our_glow(spec: Spec, moves: Moves) -> Flow:
    return Flow(spec, Glow(levels=2, steps=4, width=64), LearnedTop(), {"flow": moves}, Uniform())


def our_realnvp(spec: Spec, moves: Moves) -> Flow:
    return Flow(spec, RealNVP(couplings=8, hidden=(128, 128), norm="none"), StandardBase(), {"flow": moves})


def our_gated(spec: Spec, moves: Moves) -> Autoregressive:
    return Autoregressive(spec, GatedPixelCNN(width=32, layers=6, hidden=64), Categorical(), {"model": moves})


def normflows_glow(spec: Spec) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    import normflows as nf  # type: ignore[import-not-found]

    levels, steps, width = 2, 4, 64
    channels, height, side = spec.shape
    bases, merges, flows = [], [], []
    for i in range(levels):  # from the coarsest, as its authors' example does
        blocks = [nf.flows.GlowBlock(channels * 2 ** (levels + 1 - i), width, net_actnorm=True) for _ in range(steps)]
        flows.append([*blocks, nf.flows.Squeeze()])
        halved = 2**levels if i == 0 else 2 ** (levels - i)
        width_of = channels * 2 ** (levels + 1) if i == 0 else channels * 2 ** (levels - i)
        if i > 0:
            merges.append(nf.flows.Merge())
        bases.append(nf.distributions.DiagGaussian((width_of, height // halved, side // halved)))
    model = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)

    def loss(x: Tensor) -> Tensor:
        value: Tensor = model.forward_kld((x.float() + torch.rand(x.shape)) / 256.0 - 0.5)
        return value

    return model, loss


def normflows_realnvp(spec: Spec) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    import normflows as nf

    half = spec.numel // 2
    flows: list[nn.Module] = []
    for _ in range(8):
        net = nf.nets.MLP([half, 128, 128, spec.numel], init_zeros=True)
        flows += [nf.flows.AffineCouplingBlock(net), nf.flows.Permute(spec.numel, mode="swap")]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(spec.numel, trainable=False), flows)
    return model, model.forward_kld


def nflows_realnvp(spec: Spec) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    from nflows.distributions.normal import StandardNormal  # type: ignore[import-not-found]
    from nflows.flows.base import Flow as Other  # type: ignore[import-not-found]
    from nflows.nn.nets import MLP  # type: ignore[import-not-found]
    from nflows.transforms.base import CompositeTransform  # type: ignore[import-not-found]
    from nflows.transforms.coupling import AffineCouplingTransform  # type: ignore[import-not-found]
    from nflows.utils.torchutils import create_mid_split_binary_mask  # type: ignore[import-not-found]

    def net(inputs: int, outputs: int) -> nn.Module:
        return _Ignoring(MLP((inputs,), (outputs,), [128, 128]))

    mask = create_mid_split_binary_mask(spec.numel)
    couplings = [AffineCouplingTransform(mask if i % 2 else 1 - mask, net) for i in range(8)]
    model = Other(CompositeTransform(couplings), StandardNormal([spec.numel]))
    return model, lambda x: -model.log_prob(x).mean()


class _Ignoring(nn.Module):
    """A network that is handed a context and wants none."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        y: Tensor = self.net(x)
        return y


def zuko_realnvp(spec: Spec) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    import zuko

    model = zuko.flows.RealNVP(spec.numel, transforms=8, hidden_features=(128, 128))
    return model, lambda x: -model().log_prob(x).mean()


class PlainLayer(nn.Module):
    """A gated layer of figure 2 of arXiv 1606.05328: whole kernels under a mask, ours have the live taps alone."""

    def __init__(self, ours: GatedLayer, part: slice, skips: Tensor) -> None:
        super().__init__()
        inputs, wide = ours.vertical.in_channels, ours.vertical.out_channels
        reach, kernel = ours.reach, ours.kernel
        self.vertical = nn.Conv2d(inputs, wide, kernel, padding=reach)
        self.horizontal = nn.Conv2d(inputs, wide, (1, kernel), padding=(0, reach))
        self.link, self.across = ours.link, ours.across
        self.skip = nn.Conv2d(wide // 2, len(skips), 1, bias=False)
        above, left = torch.zeros(kernel, kernel), torch.zeros(1, kernel)
        above[: reach + 1], left[:, : reach + 1] = 1.0, 1.0
        left[:, reach] = float(ours.horizontal.mask[0, 0, 0, -1])
        self.register_buffer("above", above)
        self.register_buffer("left", left)
        with torch.no_grad():
            self.vertical.weight[:, :, : reach + 1] = ours.vertical.weight
            self.horizontal.weight[..., : reach + 1] = ours.horizontal.weight
            self.skip.weight.copy_(skips[:, part])
            for own, other in ((self.vertical, ours.vertical), (self.horizontal, ours.horizontal)):
                own.bias.copy_(other.bias)  # type: ignore[union-attr, arg-type]

    def forward(self, above: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = F.conv2d(above, self.vertical.weight * self.above, self.vertical.bias, padding=self.vertical.padding)
        narrow = F.conv2d(
            row, self.horizontal.weight * self.left, self.horizontal.bias, padding=self.horizontal.padding
        )
        gated = self.gate(narrow + self.link(F.pad(wide, (0, 0, 1, 0))[:, :, :-1]))
        onward = gated if self.across is None else row + self.across(gated)
        return self.gate(wide), onward, self.skip(gated)

    @staticmethod
    def gate(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.tanh(a) * torch.sigmoid(b)


class PlainPixelCNN(nn.Module):
    def __init__(self, ours: TwoStacks) -> None:
        super().__init__()
        layers = [layer for layer in ours.layers if isinstance(layer, GatedLayer)]
        width = layers[0].vertical.out_channels // 2
        parts = [slice(i * width, (i + 1) * width) for i in range(len(layers))]
        self.layers = nn.ModuleList(PlainLayer(*pair, ours.skips.weight) for pair in zip(layers, parts, strict=True))
        self.bias = nn.Parameter(ours.skips.bias.detach().clone()[:, None, None])  # type: ignore[union-attr]
        self.hidden, self.output = ours.hidden, ours.output

    def forward(self, x: Tensor) -> Tensor:
        above, row, skipped = x, x, self.bias
        for layer in self.layers:
            above, row, skip = layer(above, row)
            skipped = skipped + skip
        levels: Tensor = self.output(F.relu(self.hidden(F.relu(skipped))))
        return levels


def plain_gated(spec: Spec) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    ours = our_gated(spec, _moves()).nets["net"]
    assert isinstance(ours, TwoStacks)
    model = PlainPixelCNN(copy.deepcopy(ours))

    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(model(x.float() / 127.5 - 1.0), x[:, 0].long(), reduction="sum") / len(x)

    return model, loss


CASES = {
    "glow": Case(Spec((1, 28, 28)), 32, our_glow, {"normflows": normflows_glow}, {"normflows": 1.5}, 5),
    "realnvp": Case(
        Spec((64,)),
        256,
        our_realnvp,
        {"normflows": normflows_realnvp, "nflows": nflows_realnvp, "zuko": zuko_realnvp},
        {"normflows": 1.2, "nflows": 1.6, "zuko": 1.6},
        20,
    ),
    "gated_pixelcnn": Case(Spec((1, 28, 28)), 16, our_gated, {"plain": plain_gated}, {"plain": 1.4}, 5),
}


def _moves() -> Moves:
    return Moves(partial(torch.optim.Adam, lr=RATE))  # type: ignore[arg-type]


def data_of(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if case.spec.is_image:
        return torch.randint(0, 256, (case.batch, *case.spec.shape), dtype=torch.uint8, generator=generator)
    return torch.randn(case.batch, *case.spec.shape, generator=generator)


def peer_step(model: nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor) -> Step:
    adam = torch.optim.Adam(model.parameters(), lr=RATE)

    def step() -> None:
        adam.zero_grad()
        loss(x).backward()  # type: ignore[no-untyped-call]
        adam.step()

    return step


def refuse_unequal(ours: System, loss: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Nats per image of a loop that is to compute what ours does: SystemExit unless it does."""
    player = ours.players()[0]
    with torch.no_grad():
        own, other = float(sum(player.loss(Images(x)).values())), float(loss(x))
    if abs(own - other) > 1e-4 * abs(own):
        sys.exit(f"the plain build does not compute the same: {other:.4f}, ours {own:.4f}")
    return round(own, 4)


def measure(case: Case, rounds: int, steps: int, now: common.Clock, number_format: str) -> dict[str, Any]:
    x = data_of(case)
    torch.manual_seed(0)
    ours = case.ours(case.spec, _moves())
    resolved = precision.resolve(number_format, torch.device("cpu"))
    ours.prepare(total=steps * (rounds + 1), precision=resolved)
    contestants: dict[str, Step] = {"gentrain": lambda: ours.iterate(Images(x))}
    counts = {"gentrain": sum(p.numel() for p in ours.nets.parameters())}
    equal = None
    for name, make in case.peers.items():
        if name == "plain" or importlib.util.find_spec(name) is not None:
            torch.manual_seed(0)
            model, loss = make(case.spec)
            if name == "plain":
                equal = refuse_unequal(ours, loss, x)
            contestants[name] = peer_step(model, loss, x)
            counts[name] = sum(p.numel() for p in model.parameters())
    repeated = {name: partial(_times, step, steps) for name, step in contestants.items()}
    times = common.in_turns(repeated, rounds, now)
    return {
        "batch_size": case.batch,
        "parameters": counts,
        "precision": resolved,
        "equal_loss": equal,
        "peers": {name: metadata.version(name) for name in contestants if name not in ("gentrain", "plain")},
        "ms_per_step": common.milliseconds(times, steps),
        "speed_over": common.ratios(times, "gentrain"),
        "goals": {name: goal for name, goal in case.goals.items() if name in contestants},
    }


def _times(step: Step, count: int) -> None:
    for _ in range(count):
        step()


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.parser(str(__doc__).split(":", 1)[0])
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--steps", type=common.positive, default=None, help="per round (default: by case)")
    parser.add_argument("--threads", type=common.positive, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--clock", choices=common.CLOCKS, default="wall", help="cpu if the machine is busy")
    formats = get_args(precision.Precision)
    parser.add_argument("--precision", choices=formats, default="auto", help="of ours (default: %(default)s)")
    chosen = parser.parse_args(argv)
    unknown = [name for name in chosen.cases if name not in CASES]
    if unknown:
        parser.error(f"{unknown[0]}: there are {', '.join(CASES)}")
    rounds = chosen.rounds or (1 if chosen.quick else 9)
    torch.set_num_threads(chosen.threads)
    for name in chosen.cases or CASES:
        case, machine = CASES[name], common.machine()
        steps = chosen.steps or (1 if chosen.quick else case.steps)
        found = measure(case, rounds, steps, common.CLOCKS[chosen.clock], chosen.precision)
        print(
            f"{name}, batch {case.batch}, {rounds} rounds of {steps} steps, {chosen.clock} time, {found['precision']}"
        )
        for who, values in found["ms_per_step"].items():
            line = f"  {who:<10} {values['median']:>8.3f} ms/step   {found['parameters'][who]:>8,} parameters"
            if who in found["speed_over"]:
                ratio = found["speed_over"][who]["of_medians"]
                line += f"   gentrain is {ratio:.2f} x as fast, goal >= {case.goals[who]:.2f}"
            print(line)
        shape = {"threads": chosen.threads, "rounds": rounds, "steps": steps, "clock": chosen.clock}
        record = {"machine": machine, **shape, "quick": chosen.quick, "subject": "gentrain", **found}
        common.write(name if chosen.precision == "auto" else f"{name}_{chosen.precision}", record, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
