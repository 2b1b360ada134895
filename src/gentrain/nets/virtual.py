"""Virtual batch normalisation: each sample is normalised by a batch that was chosen once, and by itself.

Salimans et al. 2016 (arXiv 1606.03498, section 3.4). A sample then depends on no other sample of its batch, and is the
same in training and afterwards. The reference batch goes through the network beside each batch, so a pass costs that
much more: the paper uses it in the generator alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gentrain.errors import UserError


class VirtualBatchNorm(nn.Module):
    """[R+B C ...] -> the same; the first R rows are the reference batch (``Referenced`` puts them there).

    Mean and mean square of sample i are those of the reference batch with weight R / (R+1) and its own with weight
    1 / (R+1), over all places; reference rows are normalised by the reference batch alone. Float32 whatever comes in.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps, self.rows = eps, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.rows == 0:
            raise UserError("virtual batch norm keeps a reference batch for a GAN's generator alone: choose norm=batch")
        whole = x.float()
        reference = whole[: self.rows]
        over = [0, *range(2, x.ndim)]
        mean = reference.mean(over, keepdim=True)
        variance = (reference - mean).square().mean(over, keepdim=True)  # [1 C ...]
        rest = whole[self.rows :]
        places = list(range(2, x.ndim))
        own_mean = rest.mean(places, keepdim=True) if places else rest
        own_variance = (rest - own_mean).square().mean(places, keepdim=True) if places else torch.zeros_like(rest)
        share = 1.0 / (self.rows + 1)
        both = torch.lerp(mean.expand_as(own_mean), own_mean, share)
        # Of the mixture of two: their variances and the squared distances of their means from its own, none of which
        # is a difference of large numbers as E[x^2] - E[x]^2 would be.
        spread = (1.0 - share) * (variance + (mean - both).square()) + share * (
            own_variance + (own_mean - both).square()
        )
        gain, bias = (p.float().view(1, -1, *[1] * len(places)) for p in (self.weight, self.bias))
        normed = torch.cat(
            [(reference - mean) * (variance + self.eps).rsqrt(), (rest - both) * (spread + self.eps).rsqrt()]
        )
        return (normed * gain + bias).to(x.dtype)


class Referenced(nn.Module):
    """A network with ``VirtualBatchNorm`` in it and the inputs of its reference batch, one tensor [R ...] for each
    input; they are part of its state and never change."""

    def __init__(self, net: nn.Module, *reference: Tensor) -> None:
        super().__init__()
        self.net = net
        self.names = [f"reference_{i}" for i in range(len(reference))]
        for name, value in zip(self.names, reference, strict=True):
            self.register_buffer(name, value)
        for layer in virtual_layers(net):
            layer.rows = len(reference[0])

    def forward(self, *inputs: Tensor) -> Tensor:
        """As many inputs as there are reference tensors, each [B ...]."""
        held = [getattr(self, name) for name in self.names]
        both = [torch.cat([h.to(x.dtype), x]) for h, x in zip(held, inputs, strict=True)]
        made: Tensor = self.net(*both)
        return made[len(held[0]) :]


def virtual_layers(net: nn.Module) -> list[VirtualBatchNorm]:
    return [layer for layer in net.modules() if isinstance(layer, VirtualBatchNorm)]
