"""ADA: random changes of all that the critic sees, as often as its overfitting calls for.

Paper: Karras, Aittala, Hellsten, Laine, Lehtinen and Aila 2020, "Training Generative Adversarial Networks with Limited
Data", arXiv 2006.06676, sections 2.2 and 3, appendix B; numbers of the changes as in the authors' code.
Adds: a view with a probability p that all changes share, and a rule for p: r_t, the mean sign of the critic's output on
real images (eq. 1), is 0 where it cannot tell and 1 where it knows its data by heart; p rises while r_t is above the
target and falls while it is below. The score must be one whose sign says "real": not a Wasserstein critic's.
Departs: the paper's pixel blitting, geometry and colour (its "bgc") and none of its filters and corruptions; geometry
by one bilinear look-up, where the paper doubles the image with a wavelet filter first.
On a GPU the backward pass of that look-up adds in no fixed order: two runs of one seed may differ in the last bits.
Checked by: tests/test_views.py (the identity at p = 0, flips and quarter turns by index, colours by their matrices, the
rule for p step by step, resume).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from gentrain.errors import UserError
from gentrain.game import Verdict
from gentrain.types import Spec

GROUPS = ("blit", "geometry", "colour")
GREY = 3**-0.5
"""Each number of the unit vector of grey."""


class ADA(nn.Module):
    """``target`` of r_t; p goes from 0 to 1 within ``images`` images if it only rises, adjusted in every ``every``-th
    turn of the critic; ``start``: the first p. ``changes``: of blit, geometry, colour. UserError for other values, for
    vectors, and for images of other than 1 or 3 channels or unequal sides."""

    reads_sign: ClassVar[bool] = True

    def __init__(
        self,
        target: float = 0.6,
        images: int = 500_000,
        every: int = 4,
        start: float = 0.0,
        changes: Sequence[str] = GROUPS,
    ) -> None:
        super().__init__()
        if not -1.0 < target < 1.0:
            raise UserError(f"model.views.ada.target={target}: a mean of signs, between -1 and 1")
        if images < 1 or every < 1:
            raise UserError(f"model.views.ada: images={images}, every={every}: at least 1 each")
        if not 0.0 <= start <= 1.0:
            raise UserError(f"model.views.ada.start={start}: a probability")
        unknown = [name for name in changes if name not in GROUPS]
        if unknown:
            raise UserError(f"model.views.ada.changes: {unknown[0]} is none of {', '.join(GROUPS)}")
        self.target, self.images, self.every, self.changes = target, images, every, tuple(changes)
        self.register_buffer("p", torch.tensor(float(start)))
        self.register_buffer("signs", torch.zeros(()))  # summed since p was last adjusted
        self.register_buffer("seen", torch.zeros(()))  # real images since then
        self.register_buffer("turns", torch.zeros((), dtype=torch.int64))
        self.p: Tensor
        self.signs: Tensor
        self.seen: Tensor
        self.turns: Tensor

    def require(self, spec: Spec) -> None:
        if not spec.is_image:
            raise UserError("model.views: ADA changes images, and the data are vectors: use instance_noise")
        if spec.channels not in (1, 3) or spec.shape[1] != spec.shape[2]:
            raise UserError(f"model.views: ADA changes square images of 1 or 3 channels, not {spec.shape}")

    def forward(self, x: Tensor, iteration: int, total: int) -> Tensor:
        seen = x.float()
        if "blit" in self.changes or "geometry" in self.changes:
            seen = self._moved(seen)
        if "colour" in self.changes:
            seen = self._coloured(seen)
        return seen.to(x.dtype)

    @torch.no_grad()
    def learn(self, on_real: Verdict) -> Mapping[str, Tensor]:
        """One turn of the critic; p, to be logged. Nothing is read off the device."""
        score = on_real.score.float()
        self.signs += score.sign().mean() * len(score)
        self.seen += len(score)
        self.turns += 1
        due = (self.turns % self.every == 0).float()
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        step = torch.sign(self.signs / self.seen - self.target) * self.seen * (ranks / self.images)
        self.p.add_(due * step).clamp_(0.0, 1.0)
        self.signs *= 1.0 - due
        self.seen *= 1.0 - due
        return {"probability": self.p.clone()}

    # ----------------------------------------------------------------

    def _moved(self, x: Tensor) -> Tensor:
        """Each sample is looked up at the places that its own affine map says; those without one stay as they are."""
        n, side, device = len(x), x.shape[3], x.device
        away = Affine(torch.eye(3, device=device).repeat(n, 1, 1), torch.zeros(n, dtype=torch.bool, device=device))
        if "blit" in self.changes:
            flip = 1.0 - 2.0 * torch.randint(0, 2, (n,), device=device)
            away.then(_matrix(flip, 0, 0, 0, 1, 0), self._chosen(x))
            away.then(_turn(torch.randint(0, 4, (n,), device=device) * (math.pi / 2)), self._chosen(x))
            pixels = torch.round((2.0 * torch.rand(2, n, device=device) - 1.0) * 0.125 * side)
            away.then(_matrix(1, 0, pixels[0] * 2 / side, 0, 1, pixels[1] * 2 / side), self._chosen(x))
        if "geometry" in self.changes:
            # Twice a rotation, around the stretching: each with such a probability that p is that of any of them.
            rotated = 1.0 - (1.0 - self.p).clamp_min(0.0).sqrt()
            scale = torch.exp2(0.2 * torch.randn(n, device=device))
            away.then(_matrix(scale, 0, 0, 0, scale, 0), self._chosen(x))
            away.then(_turn(_angle(x)), self._chosen(x, rotated))
            stretch = torch.exp2(0.2 * torch.randn(n, device=device))
            away.then(_matrix(stretch, 0, 0, 0, 1 / stretch, 0), self._chosen(x))
            away.then(_turn(_angle(x)), self._chosen(x, rotated))
            shift = 0.125 * 2.0 * torch.randn(2, n, device=device)
            away.then(_matrix(1, 0, shift[0], 0, 1, shift[1]), self._chosen(x))
        with torch.autocast(x.device.type, enabled=False):
            grid = F.affine_grid(away.matrix[:, :2], list(x.shape), align_corners=False)
            moved = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        return torch.where(away.any.view(-1, 1, 1, 1), moved, x)

    def _coloured(self, x: Tensor) -> Tensor:
        """Each sample's colours through an affine map of its own; grey images are those of three equal channels."""
        n, device = len(x), x.device
        eye, grey = torch.eye(3, device=device), torch.full((3, 3), GREY * GREY, device=device)
        away = Affine(torch.eye(4, device=device).repeat(n, 1, 1), torch.zeros(n, dtype=torch.bool, device=device))
        brighter = torch.eye(4, device=device).repeat(n, 1, 1)
        brighter[:, :3, 3] = 0.2 * torch.randn(n, 1, device=device)
        away.before(brighter, self._chosen(x))
        contrast = torch.exp2(0.5 * torch.randn(n, 1, 1, device=device))
        away.before(_linear(contrast * eye), self._chosen(x))
        flipped = torch.randint(0, 2, (n, 1, 1), device=device)
        away.before(_linear(eye - 2.0 * flipped * grey), self._chosen(x))
        if x.shape[1] == 3:
            angle = _angle(x).view(-1, 1, 1)
            cross = GREY * torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=device)
            hue = angle.cos() * eye + angle.sin() * cross + (1.0 - angle.cos()) * grey  # Rodrigues' formula
            away.before(_linear(hue), self._chosen(x))
            saturation = torch.exp2(torch.randn(n, 1, 1, device=device))
            away.before(_linear(grey + (eye - grey) * saturation), self._chosen(x))
        rows = away.matrix[:, :3]  # [B 3 4]
        if x.shape[1] == 1:
            rows = rows.mean(1, keepdim=True)
            rows = torch.cat([rows[:, :, :3].sum(2, keepdim=True), rows[:, :, 3:]], dim=2)  # [B 1 2]
        with torch.autocast(x.device.type, enabled=False):
            changed = torch.einsum("bij,bjhw->bihw", rows[:, :, :-1], x) + rows[:, :, -1:, None]
        return torch.where(away.any.view(-1, 1, 1, 1), changed, x)

    def _chosen(self, x: Tensor, p: Tensor | None = None) -> Tensor:
        """bool [B]: whose turn it is to be changed."""
        return torch.rand(len(x), device=x.device) < (self.p if p is None else p)


class Affine:
    """An affine map for each sample, put together one change at a time; ``any``: whether there is any, bool [B]."""

    def __init__(self, matrix: Tensor, any_: Tensor) -> None:
        self.matrix, self.any = matrix, any_

    def then(self, other: Tensor, chosen: Tensor) -> None:
        """Look-ups go through ``other`` first: it acts on the image that the maps so far have made."""
        self.matrix = torch.where(chosen.view(-1, 1, 1), self.matrix @ other, self.matrix)
        self.any = self.any | chosen

    def before(self, other: Tensor, chosen: Tensor) -> None:
        """Values go through ``other`` after the maps so far."""
        self.matrix = torch.where(chosen.view(-1, 1, 1), other @ self.matrix, self.matrix)
        self.any = self.any | chosen


def _angle(x: Tensor) -> Tensor:
    """U(-pi, pi) [B]."""
    return (2.0 * torch.rand(len(x), device=x.device) - 1.0) * math.pi


def _turn(angle: Tensor) -> Tensor:
    return _matrix(angle.cos(), -angle.sin(), 0, angle.sin(), angle.cos(), 0)


def _matrix(*rows: Tensor | float) -> Tensor:
    """[B 3 3] of the six numbers of its first two rows, each [B] or one for all."""
    like = next(number for number in rows if isinstance(number, Tensor))
    numbers = [*rows, 0, 0, 1]
    whole = [n if isinstance(n, Tensor) else torch.full_like(like, float(n)) for n in numbers]
    return torch.stack(whole, dim=1).view(-1, 3, 3).float()


def _linear(matrix: Tensor) -> Tensor:
    """[B 4 4] of a linear map [B 3 3]."""
    return F.pad(matrix, (0, 1, 0, 1)) + F.pad(torch.ones(1, 1, 1, device=matrix.device), (3, 0, 3, 0))
