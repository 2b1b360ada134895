"""AC-GAN: a conditional GAN whose critic is not told the class but has to tell it, of real and of generated images.

Paper: Odena, Olah, Shlens 2017, Conditional Image Synthesis With Auxiliary Classifier GANs, arXiv 1610.09585, eq. 2 and
3: the critic maximises L_S + L_C, the generator L_C - L_S, with L_C the log-likelihood of the class on real and
generated samples.
Adds to the adversarial family: a head of class logits on the critic's features and its cross-entropies.
Departs: DCGAN's networks without the paper's dropout in the critic; labels of samples come from the batch, so that they
are as frequent as the data's; a weight for each of the three cross-entropies (1 in the paper; WGAN-GP's authors: 1 for
the critic, 0.1 for the generator).
Checked by: tests/test_critic_heads.py (who gets which gradient, the terms against their definition),
tests/test_contract.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from gentrain.errors import UserError
from gentrain.game import CLASS_HEAD, Round, Verdict
from gentrain.types import Spec, Terms


@dataclass(frozen=True)
class AuxiliaryClassifier:
    """An ``Aim``: ``real`` and ``fake`` weigh the cross-entropy of the class in the critic's turn, ``generator_weight``
    that of samples in the generator's; 0 leaves one out. UserError for weights below 0."""

    real: float = 1.0
    fake: float = 1.0
    generator_weight: float = 1.0
    needs_real: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("real", "fake", "generator_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"model.aims: auxiliary classifier: {name}={getattr(self, name)}: 0 or more")
        if self.real == self.fake == 0:
            raise UserError("model.aims: auxiliary classifier: real=0 and fake=0 leave its head untrained")

    def heads(self, spec: Spec, codes: int) -> dict[str, int]:
        if spec.classes < 2:
            raise UserError("model.aims: auxiliary classifier: data= gives no classes: choose other data")
        return {CLASS_HEAD: spec.classes}

    def critic(self, seen: Round) -> Terms:
        terms: Terms = {}
        if self.real > 0:
            terms["class_real"] = self.real * _cross_entropy(seen, seen.real_verdict)
        if self.fake > 0:
            terms["class_fake"] = self.fake * _cross_entropy(seen, seen.on_fake)
        return terms

    def generator(self, seen: Round) -> Terms:
        if self.generator_weight == 0:
            return {}
        return {"class": self.generator_weight * _cross_entropy(seen, seen.on_fake)}


def _cross_entropy(seen: Round, verdict: Verdict) -> Tensor:
    """Mean -log p(class) in nats: minus half of L_C."""
    if seen.labels is None:
        raise UserError("model.labels: the auxiliary classifier needs samples made for classes: model=acgan has them")
    return F.cross_entropy(verdict.more[CLASS_HEAD].float(), seen.labels)
