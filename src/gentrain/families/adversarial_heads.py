"""GANs whose critic says more of an image than how real it looks: its class, or the code that it was made from."""

from __future__ import annotations

from typing import cast, final

import torch
from torch import Tensor

from gentrain.capabilities import LearnsFromFewLabels, Varied
from gentrain.errors import UserError
from gentrain.families.adversarial import Adversarial
from gentrain.game import CLASS_HEAD, CODE_HEAD, ReadableCodes, Verdict
from gentrain.types import Images, to_signed


@final
class ClassifyingAdversarial(Adversarial):
    """One with logits of the classes among what its critic gives (``game.CLASS_HEAD``): of a critic made of them, or of
    a head that an aim asks for. The average is of both networks, since both are used when training is over."""

    sampled = ("generator", "critic")
    reads_images = True

    @property
    def labels_per_class(self) -> int | None:
        """Of the aim that learns from few labels; None where none does."""
        return next((aim.labels_per_class for aim in self._learners()), None)

    def give_labelled(self, images: Images) -> None:
        for aim in self._learners():
            aim.give_labelled(images)

    def classify(self, x: Tensor) -> Tensor:
        """Logits [B K] for x uint8 [B C H W]. UserError for a critic that gives none."""
        logits = _judged(self, x).more.get(CLASS_HEAD)
        if logits is None:
            raise UserError(
                "model: this critic gives no classes: model.critic or one of model.aims must bring them (model=ssgan, "
                "model=acgan)"
            )
        return logits.float()

    def _learners(self) -> list[LearnsFromFewLabels]:
        return [aim for aim in self.aims.values() if isinstance(aim, LearnsFromFewLabels)]


@final
class InformedAdversarial(Adversarial):
    """One whose codes are read off its samples (InfoGAN: Chen et al. 2016, arXiv 1606.03657). UserError, when it is
    asked, without codes that can be read, or without an aim that has the critic read them."""

    sampled = ("generator", "critic")
    reads_images = True

    def cluster(self, x: Tensor) -> Tensor:
        """Probability of each category [B K] of the first categorical code, for x uint8 [B C H W]."""
        read = _judged(self, x).more.get(CODE_HEAD)
        if read is None:
            raise UserError("model.aims: nothing has the critic read the codes (model=infogan brings one)")
        return self._readable.probabilities(read.float())

    def vary(self, n: int, *, steps: int, reach: float, generator: torch.Generator | None = None) -> list[Varied]:
        """For each code ``n`` rows of what ``decode`` takes, along which it alone changes."""
        codes, base, found = self._readable, self.prior_codes(n, generator), []
        for walk in codes.walks(steps, reach):
            z = base[:, None].repeat(1, len(walk.values), 1)  # [n T Z+A]
            start = self.latent + walk.start
            z[:, :, start : start + walk.values.shape[1]] = walk.values.to(z)
            found.append(Varied(walk.name, walk.words, z))
        return found

    @property
    def _readable(self) -> ReadableCodes:
        if not hasattr(self.codes, "walks"):
            raise UserError("model.codes: there are none that can be read (model=infogan brings some)")
        return cast("ReadableCodes", self.codes)


def _judged(system: Adversarial, x: Tensor) -> Verdict:
    verdict: Verdict = system.nets["critic"].judge(to_signed(x))  # type: ignore[operator]
    return verdict
