"""Optimistic optimisers: each step is twice the present direction less the one before, which damps the circling of two
players about a saddle.

Daskalakis, Ilyas, Syrgkanis and Zeng 2018, "Training GANs with Optimism", arXiv 1711.00141: optimistic gradient
descent (eq. 5) and Optimistic Adam (algorithm 1). They foresee the next direction by the last one, so a step costs no
second pass (``turns=extragradient`` does).
Departs: nothing went before the first step, which is a plain one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class _Optimistic(Optimizer, ABC):
    """``theta <- theta - lr (2 d_t - d_(t-1))`` for the direction d_t that a subclass finds."""

    @abstractmethod
    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Of one parameter, from its gradient; a tensor of its own."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step. ``closure``: makes the gradients anew, as with all of torch's optimisers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                now = self.direction(parameter.grad, state, group)
                before = state.get("before", now)
                parameter.add_(now, alpha=-2.0 * group["lr"]).add_(before, alpha=group["lr"])
                state["before"] = now
        return loss


class OptimisticSGD(_Optimistic):
    """The direction is the gradient (eq. 5)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-3) -> None:
        _check(lr=lr)
        super().__init__(params, {"lr": lr})

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        return gradient.clone()


class OptimisticAdam(_Optimistic):
    """The direction is Adam's, m_hat / (sqrt(v_hat) + eps), with its corrections for the first steps (algorithm 1)."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        _check(lr=lr, eps=eps)
        for number, beta in enumerate(betas, start=1):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"beta{number}={beta}: from 0 to below 1")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps})

    def direction(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        first, second = group["betas"]
        if "step" not in state:
            state |= {"step": 0, "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
        state["step"] += 1
        state["mean"].lerp_(gradient, 1.0 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
        scale = (state["square"] / (1.0 - second ** state["step"])).sqrt_().add_(group["eps"])
        found: Tensor = state["mean"] / (1.0 - first ** state["step"]) / scale
        return found


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if value < 0.0:
            raise ValueError(f"{name}={value}: 0 or more")
