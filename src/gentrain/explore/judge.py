"""A classifier of the data's own domain as a judge of decoded images, where there is one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentrain.errors import UserError
from gentrain.evaluation.classes import knows_labels
from gentrain.evaluation.domain import Domain
from gentrain.evaluation.extractors import Extractor
from gentrain.evaluation.metric import logits_of
from gentrain.explore.study import Study


@dataclass(frozen=True, eq=False)
class Judge:
    extractor: Extractor

    def __call__(self, x: Tensor) -> Tensor:
        """Probabilities of the classes float64 [N K] for x uint8 [N C H W]."""
        return logits_of(self.extractor(x)).double().softmax(1).cpu()

    @property
    def facts(self) -> dict[str, str]:
        return {"name": self.extractor.name, "sha256": self.extractor.sha256}


def judge(study: Study) -> Judge | None:
    """The domain extractor of the study's data; None where none serves them or its classes are others."""
    source = Domain()
    try:
        if not study.data.spec.is_image or not knows_labels(source, study.data):
            return None
        source.check(study.data)
    except UserError:
        return None
    with torch.no_grad():
        return Judge(source.load(study.data, study.device))
