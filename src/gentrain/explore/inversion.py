"""From images back to the codes of a decoder: by optimisation, and by a network trained on the decoder's own images.

Zhu et al. 2016, "Generative Visual Manipulation on the Natural Image Manifold", arXiv 1609.03552, section 3.1: the code
whose image is nearest to the photograph, found by L-BFGS, by a network, and by L-BFGS from what the network says.
Departs: the network is trained on generated images, whose codes are known, and on training images together; the
features are those of a domain extractor, or VGG-19's, for AlexNet's conv4; errors are divided by what they are between
two training images, so that the weights of pixels and features mean the same for all data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from gentrain.explore.study import Study
from gentrain.types import to_signed

Code = Callable[[Tensor], Tensor]
"""uint8 [N C H W] -> codes [N Z], both on the CPU."""
Goal = Callable[[slice], Callable[[Tensor], Tensor]]
"""What is minimised for some rows of all codes: of their codes [B Z] on the device a number each [B]."""

TRAINING_BATCH = 64
HISTORY = 20
"""Steps that L-BFGS remembers."""


@dataclass(frozen=True, eq=False)
class Likeness:
    """How far images are from others, in their pixels and in feature maps. ``scales``: the mean square differences of
    images of the data, pixels first; 1 is as far as two of them are from each other."""

    net: nn.Module | None
    pixel_weight: float
    feature_weight: float
    scales: tuple[float, ...]

    @classmethod
    def fit(cls, net: nn.Module | None, x: Tensor, pixel_weight: float, feature_weight: float) -> Likeness:
        """``x``: uint8 [N C H W] of the training split, N of 2 or more, on the device."""
        unscaled = cls(net, pixel_weight, feature_weight, ())
        with torch.no_grad():
            maps = unscaled.maps(to_signed(x))
        spreads = (2.0 * float(seen.var(0).mean()) for seen in maps)  # E (a - b)^2 is twice the variance
        return cls(net, pixel_weight, feature_weight, tuple(max(spread, 1e-12) for spread in spreads))

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """The pixels and the feature maps of x [B C H W] in [-1, 1]."""
        return (x,) if self.net is None else (x, *self.net(x))

    def parts(self, x: Tensor, wanted: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """[B] errors of pixels and of features (0 without any) of x [B C H W] against the maps of other images."""
        errors = [
            (a - b).square().flatten(1).mean(1) / scale
            for a, b, scale in zip(self.maps(x), wanted, self.scales, strict=True)
        ]
        return errors[0], torch.stack(errors[1:]).mean(0) if len(errors) > 1 else torch.zeros_like(errors[0])

    def __call__(self, x: Tensor, wanted: Sequence[Tensor]) -> Tensor:
        """[B]: the weighted sum."""
        pixels, features = self.parts(x, wanted)
        return self.pixel_weight * pixels + self.feature_weight * features


@dataclass(frozen=True, eq=False)
class Inversion:
    """``centre``, ``spread``: of codes [Z]. ``steps``: of the optimiser, for each image and start. ``pull``: weight of
    the mean square of a code in spreads, which keeps it where codes are drawn. ``optimizer``: ``lbfgs`` with a line
    search, one image at a time, or ``adam``, all at once."""

    study: Study
    likeness: Likeness
    centre: Tensor
    spread: Tensor
    steps: int
    pull: float
    optimizer: str

    def decode(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """[B C H W] in [-1, 1] on the device; gradients pass."""
        made: Tensor = self.study.system.decode(z, *(() if labels is None else (labels,)))
        return made.float()

    def error(self, z: Tensor, wanted: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """[B]: what is minimised."""
        standard = (z - self.centre.to(z.device)) / self.spread.to(z.device)
        return self.likeness(self.decode(z, labels), wanted) + self.pull * standard.square().mean(1)

    def opt(self, x: Tensor, labels: Tensor | None, starts: Tensor) -> Tensor:
        """Codes [N Z] of x uint8 [N C H W]: the best of what is found from each of ``starts`` [S Z]."""
        tried = [self.refined(x, labels, start.expand(len(x), -1)) for start in starts]
        errors = torch.stack([self.errors(x, labels, z) for z in tried])  # [S N]
        return torch.stack(tried)[errors.argmin(0), torch.arange(len(x))]

    def refined(self, x: Tensor, labels: Tensor | None, start: Tensor) -> Tensor:
        """Codes [N Z] found from ``start`` [N Z]; the start itself where nothing better is."""
        return self.searched(self._likeness_to(x, labels), start)

    def errors(self, x: Tensor, labels: Tensor | None, z: Tensor) -> Tensor:
        """float32 [N] of codes [N Z], on the CPU."""
        return self.values(self._likeness_to(x, labels), z)

    def searched(self, goal: Goal, start: Tensor) -> Tensor:
        """Codes [N Z] with a lower ``goal`` than ``start`` [N Z]; the start itself where nothing better is."""
        search = self._lbfgs if self.optimizer == "lbfgs" else self._adam
        with torch.enable_grad(), torch.autocast(self.study.device.type, enabled=False):
            found = search(goal, start.clone())
        before, after = (self.values(goal, z) for z in (start, found))
        return torch.where((after < before)[:, None], found, start)  # false for nan

    def values(self, goal: Goal, z: Tensor) -> Tensor:
        """float32 [N] of codes [N Z], on the CPU."""
        with torch.no_grad(), torch.autocast(self.study.device.type, enabled=False):
            each = [goal(slice(i, i + 1))(z[i, None].to(self.study.device)) for i in range(len(z))]
            return torch.cat(each).float().cpu()

    def _likeness_to(self, x: Tensor, labels: Tensor | None) -> Goal:
        def goal(rows: slice) -> Callable[[Tensor], Tensor]:
            with torch.no_grad():
                wanted = self.likeness.maps(to_signed(x[rows].to(self.study.device)))
            y = None if labels is None else labels[rows].to(self.study.device)
            return lambda z: self.error(z, wanted, y)

        return goal

    def _lbfgs(self, goal: Goal, z: Tensor) -> Tensor:
        for i in range(len(z)):  # together they would share one length of step
            error = goal(slice(i, i + 1))
            one = z[i, None].to(self.study.device).clone().requires_grad_()
            search = torch.optim.LBFGS(
                [one], max_iter=self.steps, history_size=HISTORY, line_search_fn="strong_wolfe",
                tolerance_grad=1e-9, tolerance_change=1e-12,
            )  # fmt: skip

            def closure(one: Tensor = one, error: Callable[[Tensor], Tensor] = error) -> Tensor:
                loss = error(one).sum()
                (one.grad,) = torch.autograd.grad(loss, one)
                return loss

            search.step(closure)  # type: ignore[no-untyped-call]
            z[i] = one.detach()[0].cpu()
        return z

    def _adam(self, goal: Goal, z: Tensor) -> Tensor:
        error = goal(slice(0, len(z)))
        all_of_them = z.to(self.study.device).requires_grad_()
        search = torch.optim.Adam([all_of_them], lr=0.1 * float(self.spread.mean()))
        fall = torch.optim.lr_scheduler.LinearLR(search, 1.0, 0.05, self.steps)
        for _ in range(self.steps):
            loss = error(all_of_them).sum()
            (all_of_them.grad,) = torch.autograd.grad(loss, all_of_them)
            search.step()
            fall.step()
        return all_of_them.detach().cpu()


def inverse_net(shape: tuple[int, ...], codes: int, width: int = 32) -> nn.Module:
    """x in [-1, 1] [B C H W] -> [B codes]: convolutions that halve the side down to 4 pixels, twice as wide each time
    up to 8 ``width``, and a linear layer."""
    channels, side = shape[0], shape[-1]
    widths = [channels]
    while side > 4 or len(widths) == 1:
        side = (side + 1) // 2
        widths.append(min(width * 2 ** (len(widths) - 1), 8 * width))
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side * side, codes))


def trained_inverse(inversion: Inversion, steps: int, rate: float = 2e-3) -> Code:
    """A network that says the codes of images. It minimises the squared error, in spreads, of the codes of generated
    images, and the error of what is decoded from what it says of generated and of training images. Its noise and its
    weights come from torch's global generator."""
    study, device, data = inversion.study, inversion.study.device, inversion.study.data
    centre, spread = inversion.centre.to(device), inversion.spread.to(device)
    net = inverse_net(data.spec.shape, len(spread)).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    fall = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)

    def said(x: Tensor) -> Tensor:
        codes: Tensor = centre + spread * net(x)
        return codes

    for _ in range(steps):
        place = torch.randint(len(data.train), (2 * TRAINING_BATCH,))
        real = study.at("train", place)
        labels = real.y.to(device) if study.told_classes and real.y is not None else None
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            z = study.system.prior_codes(TRAINING_BATCH)
            made = inversion.decode(z, None if labels is None else labels[:TRAINING_BATCH])
            x = torch.cat([made, to_signed(real.x[TRAINING_BATCH:].to(device))])
            wanted = inversion.likeness.maps(x)
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            codes = said(x)
            of_codes = ((codes[:TRAINING_BATCH] - z) / spread).square().mean()
            loss = of_codes + inversion.error(codes, wanted, labels).mean()
            gradients = torch.autograd.grad(loss, list(net.parameters()))
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        fall.step()
    net.eval()

    def code(x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            parts = [said(to_signed(part.to(device))).cpu() for part in torch.split(x, 4 * TRAINING_BATCH)]
        return torch.cat(parts)

    return code
