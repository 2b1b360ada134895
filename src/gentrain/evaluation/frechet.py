"""The Fréchet distance of the Gaussians fitted to two sets of features."""

from __future__ import annotations

from torch import Tensor

from gentrain.evaluation.metric import Given, finite


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features [N D] and [M D] (Heusel et al. 2017,
    arXiv 1706.08500, eq. 6): |mu_r - mu_f|^2 + Tr(S_r + S_f - 2 (S_r S_f)^(1/2)). float64 throughout; covariances
    with N - 1. Raises UserError for non-finite features."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, fake = finite(real, "reference"), finite(fake, "samples")
    # The distance does not change when both sets move together, and sums of squares around 0 lose fewer digits.
    centre = real.mean(dim=0)
    metric = FrechetInceptionDistance(Given(real.shape[1]), sync_on_compute=False)
    metric.update(real - centre, real=True)
    metric.update(fake - centre, real=False)
    return max(float(metric.compute()), 0.0)  # below 0 by rounding only
