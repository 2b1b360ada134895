"""A projected image changed with a brush: the nearby code whose image has the wanted colours under the strokes.

Zhu et al. 2016 (iGAN), arXiv 1609.03552, eq. 4: min over z of the sum over constraints |f_g(G(z)) - v_g|^2 plus
lambda_s |z - z_0|^2, with the colour of pixels as f_g.
Departs: no sketch and warp constraints, no critic's term, and the edit is not carried over to the photograph's own
pixels; the colours' error is divided by that of two training images and the codes are counted in spreads, so that the
weight of closeness means the same for all data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gentrain.errors import UserError
from gentrain.explore.inversion import Goal, Inversion
from gentrain.explore.own import one_picture
from gentrain.explore.study import Seen, Study
from gentrain.report.strips import Row, strip_block
from gentrain.types import to_signed


@dataclass(frozen=True, eq=False)
class Strokes:
    """``colours``: uint8 [C H W]. ``mask``: bool [H W], true where they are wanted. ``stay``: weight of the mean square
    distance, in spreads, from the code that the edit begins at."""

    colours: Tensor
    mask: Tensor
    stay: float

    @classmethod
    def read(cls, study: Study, colours: str, mask: str, resize: str, stay: float) -> Strokes:
        """From two image files; the mask counts where it is lighter than the middle grey."""
        for key, place in (("strokes", colours), ("mask", mask)):
            if not place:
                raise UserError(
                    f"edit=strokes: {key}= is missing; strokes=FILE shows the colours, mask=FILE is white where they "
                    "are wanted and black elsewhere"
                )
        wanted = one_picture(study, colours, "strokes", resize, study.data.spec.shape[0])
        where = one_picture(study, mask, "mask", resize, 1)[0] > 127
        if not bool(where.any()):
            raise UserError(f"mask={mask}: nothing in it is lighter than the middle grey, so nothing is asked for")
        return cls(wanted, where, stay)

    def far(self, x: Tensor) -> Tensor:
        """[B]: mean square difference from the colours under the mask, of x [B C H W] in [-1, 1]."""
        wanted, mask = to_signed(self.colours.to(x.device)), self.mask.to(x.device)
        return (x - wanted)[..., mask].square().flatten(1).mean(1)

    def goal(self, inversion: Inversion, codes: Tensor, labels: Tensor | None) -> Goal:
        """``codes``: [N Z] that the edit begins at."""
        device, spread, scale = inversion.study.device, inversion.spread, inversion.likeness.scales[0]

        def goal(rows: slice) -> Callable[[Tensor], Tensor]:
            start = codes[rows].to(device)
            y = None if labels is None else labels[rows].to(device)

            def error(z: Tensor) -> Tensor:
                moved = ((z - start) / spread.to(device)).square().mean(1)
                return self.far(inversion.decode(z, y)) / scale + self.stay * moved

            return error

        return goal

    def painted(self, x: Tensor) -> Tensor:
        """Images uint8 [N C H W] with the strokes laid over them."""
        return torch.where(self.mask, self.colours, x)


def edited(
    inversion: Inversion, strokes: Strokes, seen: Seen, labels: Tensor | None, codes: Tensor, show: int
) -> tuple[dict[str, Any], tuple[str, Image.Image]]:
    """Numbers, and a block for the picture, of projected images ``seen`` with ``codes`` [N Z]."""
    study = inversion.study
    found = inversion.searched(strokes.goal(inversion, codes, labels), codes)
    before, after = study.decode(codes, labels), study.decode(found, labels)
    outside = ~strokes.mask
    changed = (after.double() - before.double()).div(255).square()
    rows: list[Row] = [
        ("image", seen.x[:show]), ("projected", before[:show]),
        ("with strokes", strokes.painted(before)[:show]), ("edited", after[:show]),
    ]  # fmt: skip
    facts = {
        "stay": strokes.stay,
        "pixels": int(strokes.mask.sum()),
        # A quarter: of images in [0, 1], as all errors of this tool.
        "error_under_strokes_before": float(strokes.far(to_signed(before)).mean() / 4),
        "error_under_strokes": float(strokes.far(to_signed(after)).mean() / 4),
        "changed_elsewhere": float(changed[..., outside].mean()) if bool(outside.any()) else 0.0,
        "code_moved_in_spreads": float(((found - codes) / inversion.spread).square().mean().sqrt()),
        "codes": found.tolist(),
    }
    return facts, ("the nearest codes whose images have the strokes' colours", strip_block(rows))
