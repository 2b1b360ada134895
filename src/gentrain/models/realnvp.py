"""RealNVP: affine couplings between checkerboards and between channels, at several scales; dense ones for vectors.

Paper: Dinh, Sohl-Dickstein, Bengio 2017, Density estimation using Real NVP, arXiv 1605.08803: eq. 7 and 8 (coupling),
sections 3.4 to 3.7 (masks, scales, batch normalisation), section 4.1 (logit, networks, numbers).
Adds to NICE: scales in the couplings, masks for images, factoring out, batch normalisation inside the map.
Departs: the logit is of alpha + (1 - 2 alpha) x (see ``nets.flows.parts.Logit``); batch normalisation inside the map
uses the batch's statistics in training and running averages afterwards (the paper mixes both in training); no L2 on the
gains of weight norm; for vectors, couplings between halves with dense networks and no logit.
Checked by: tests/test_flow_parts.py and tests/test_flows.py (inverse and Jacobian after training, masks),
tests/test_contract.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gentrain.errors import UserError
from gentrain.nets.flows.bijection import Bijection, Chain
from gentrain.nets.flows.conditioners import ResidualNet, dense
from gentrain.nets.flows.couplings import CheckerboardCoupling, HalfCoupling, TanhAffine
from gentrain.nets.flows.multiscale import MultiScale, require_halvings
from gentrain.nets.flows.parts import ActNorm, BatchNormFlow, Logit, Squeeze
from gentrain.nets.layers import choose
from gentrain.types import Spec

NORMS: dict[str, Callable[[int], list[Bijection]]] = {
    "batch": lambda channels: [BatchNormFlow(channels)],
    "actnorm": lambda channels: [ActNorm(channels)],
    "none": lambda channels: [],
}
"""What stands behind each coupling."""


@dataclass(frozen=True)
class RealNVP:
    """Images: at each of ``scales`` but the last three checkerboard couplings, a squeeze, three channel couplings, and
    half of the channels put aside; at the last four checkerboard couplings. Networks of ``blocks`` residual blocks with
    ``width`` channels, twice as many at each further scale. ``alpha``: of the logit.

    Vectors: ``couplings`` between halves, by turns, with layers of ``hidden``. ``norm``: batch, actnorm or none, behind
    each coupling. UserError for images whose sides cannot be halved ``scales`` - 1 times.
    """

    scales: int = 2
    blocks: int = 8
    width: int = 64
    couplings: int = 8
    hidden: Sequence[int] = (128, 128)
    norm: str = "batch"
    alpha: float = 0.05

    def __post_init__(self) -> None:
        choose(NORMS, self.norm, "model.net.norm")
        for name in ("scales", "blocks", "width", "couplings"):
            if getattr(self, name) < 1:
                raise UserError(f"model.net.{name}={getattr(self, name)}: at least 1")
        if any(width < 1 for width in self.hidden):
            raise UserError(f"model.net.hidden needs widths of 1 or more, got {list(self.hidden)}")

    def build(self, spec: Spec) -> Bijection:
        return self._of_images(spec) if spec.is_image else self._of_vectors(spec.numel)

    def _of_images(self, spec: Spec) -> Bijection:
        require_halvings(spec, self.scales - 1, f"model.net.scales={self.scales}", least=1)
        (channels, height, width), hidden = spec.shape, self.width
        levels: list[Bijection] = []
        for scale in range(self.scales):
            final = scale == self.scales - 1
            shape = (channels, height, width)
            parts = [part for number in range(4 if final else 3) for part in self._on_squares(shape, hidden, number)]
            if not final:
                channels, height, width, hidden = 4 * channels, height // 2, width // 2, 2 * hidden
                halves = [part for number in range(3) for part in self._between_halves(channels, hidden, number)]
                parts += [Squeeze(), *halves]
                channels //= 2
            levels.append(Chain(*parts))
        return Chain(Logit(self.alpha), MultiScale(levels, spec.shape, learned=False, last=False))

    def _on_squares(self, shape: tuple[int, int, int], hidden: int, number: int) -> list[Bijection]:
        channels = shape[0]
        net = ResidualNet(channels, 2 * channels, hidden, self.blocks)
        return [CheckerboardCoupling(net, TanhAffine(channels), shape, number), *NORMS[self.norm](channels)]

    def _between_halves(self, channels: int, hidden: int, number: int) -> list[Bijection]:
        kept, changed = HalfCoupling.sizes(channels)
        net = ResidualNet(kept, 2 * changed, hidden, self.blocks)
        return [HalfCoupling(net, TanhAffine(changed), swapped=number % 2 == 1), *NORMS[self.norm](channels)]

    def _of_vectors(self, dimensions: int) -> Bijection:
        if dimensions < 2:
            raise UserError("model=realnvp: vectors of one number have no halves; use model=maf")
        kept, changed = HalfCoupling.sizes(dimensions)
        parts: list[Bijection] = []
        for number in range(self.couplings):
            net = dense(kept, 2 * changed, self.hidden)
            parts.append(HalfCoupling(net, TanhAffine(changed), swapped=number % 2 == 1))
            parts += NORMS[self.norm](dimensions)
        return Chain(*parts)
