"""DC-IGN: a variational autoencoder some of whose latents are forced to mean one known factor each.

Paper: Kulkarni, Whitney, Kohli and Tenenbaum 2015, Deep Convolutional Inverse Graphics Network, arXiv 1503.03167,
section 3.1 (the training procedure, steps 1 to 8) and 3.2 (invariance targeting).
Adds to the VAE: training images come in groups in which one factor varies. Of a group's codes all latents but those
tied to that factor are replaced by their mean over the group, and their gradient by ``strength`` times the difference
from that mean. Groups in which anything varies that no latent is tied to leave the remaining latents as they are.
Departs: several groups make one batch (the paper: the batch is one group); the replaced gradient stands as a term of
the objective, half the squared difference, whose gradient it is, so that it is a mean over the batch as the bound is
(the paper's are sums), and is the same on several devices; the code's means and log variances are clamped alike, as in
the authors' release, which clamps to the group's first image instead of the mean; strided convolutions for pooling;
flat shapes for faces.
Checked by: tests/test_dcign.py (the gradients against the paper's steps written out, a factor read from its latent).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.types import Images, Spec, Terms


class ClampedLatents:
    """A ``Coupling`` for codes whose encoder gives one or more numbers for each latent, [B k*Z].

    ``tied``: how many latents each factor has, the first ones in this order; the rest belong to whatever else varies in
    groups of the data. ``strength``: of the pull towards the group's mean. Raises UserError for data without groups and
    for latents that would never learn.
    """

    def __init__(self, spec: Spec, latent: int, tied: Mapping[str, int], strength: float = 0.01) -> None:
        self.strength = strength
        self.places: dict[str, range] = {}
        first = 0
        for name, count in tied.items():
            if count < 1:
                raise UserError(f"model.coupling.tied.{name}={count}: at least 1 latent")
            self.places[name] = range(first, first + count)
            first += count
        if strength < 0:
            raise UserError(f"model.coupling.strength={strength}: 0 or more")
        self._check(spec, latent, first)
        rest = range(first, latent)
        passing = torch.zeros(len(spec.varied_names), latent, dtype=torch.bool)
        for row, name in enumerate(spec.varied_names):
            passing[row, list(self.places.get(name, rest))] = True
        self.passing = passing  # [factors Z]

    def _check(self, spec: Spec, latent: int, used: int) -> None:
        varied = spec.varied_names
        if not varied:
            each = ", ".join(f"{name}: 1" for name in self.places)
            raise UserError(
                "model.coupling: the data have no groups in which one factor varies; use data=shapes "
                f'"data.vary={{{each}, intrinsic: 10}}"'
            )
        for name in self.places:
            if name not in varied:
                raise UserError(
                    f"model.coupling.tied.{name}: no group of the data varies it (there are: {', '.join(varied)}); "
                    "name it in data.vary"
                )
        others = [name for name in varied if name not in self.places]
        if used > latent or (others and used == latent):
            more = f" and the rest ({', '.join(others)})" if others else ""
            raise UserError(
                f"model.latent={latent}: {used} are tied to factors{more}; use {used + bool(others)} or more"
            )
        if not others and used < latent:
            raise UserError(
                f"model.latent={latent}: {latent - used} of them are tied to nothing and would never learn; add "
                f"intrinsic to data.vary, or use model.latent={used}"
            )

    def __call__(self, output: Tensor, batch: Images) -> tuple[Tensor, Terms]:
        if batch.varied is None:
            raise UserError("model.coupling: a batch without groups: training rows alone come in them")
        latent = self.passing.shape[1]
        kinds = batch.varied.view(-1, batch.group)[:, 0]  # [G]
        passing = self.passing.to(output.device)[kinds].repeat(1, output.shape[1] // latent)[:, None]  # [G 1 k*Z]
        codes = output.view(len(kinds), batch.group, -1)
        centre = codes.mean(1, keepdim=True)
        # Steps 5 and 7: what is replaced takes no gradient of the bound, and ...
        clamped = torch.where(passing, codes, centre.detach()).view_as(output)
        # ... the difference from the mean instead. That is the gradient of half its square, mean included: the
        # differences of a group sum to 0.
        strays = (codes - centre).masked_fill(passing, 0.0)
        return clamped, {"invariance": 0.5 * self.strength * strays.square().sum() / len(output)}
