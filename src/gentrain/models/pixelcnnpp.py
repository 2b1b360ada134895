"""PixelCNN++: two streams of shifted convolutions at three resolutions, and a mixture of logistics for each pixel.

Paper: Salimans, Karpathy, Chen, Kingma 2017, PixelCNN++, arXiv 1701.05517: section 2 and figure 2.
Adds: the network of the family Autoregressive: one stream sees the rows above, the other those and what lies to the
left; gated residual blocks with concat-ELU; halved and doubled sides with short-cuts between equal ones; normalised
weights that start from the first batch; dropout; a channel of ones, which tells a picture from its margin.
Departs: any sides, halves rounded up (28, 14, 7; 5, 3, 2). A head that ties no colours (categorical) gets a hidden
layer in which a colour sees those before it.
Checked by: tests/test_pixelcnnpp.py, tests/test_autoregressive.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gentrain.errors import UserError
from gentrain.nets.two_streams import TwoStreams
from gentrain.types import Spec


@dataclass(frozen=True)
class PixelCNNpp:
    """``blocks`` gated blocks of ``width`` features at each of ``levels`` resolutions on the way down in size, one more
    at all but the smallest on the way up. UserError for vectors and for numbers below 1."""

    width: int
    blocks: int
    levels: int = 3
    dropout: float = 0.5

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "levels"):
            if getattr(self, name) < 1:
                raise UserError(f"model.net.{name}={getattr(self, name)}: at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.net.dropout={self.dropout:g}: 0 or more, below 1")

    def causal(self, spec: Spec, outputs: int, *, colours: int, condition: int = 0) -> nn.Module:
        return TwoStreams(
            spec.channels, self.width, self.blocks, self.levels, self.dropout, outputs, colours, condition
        )
