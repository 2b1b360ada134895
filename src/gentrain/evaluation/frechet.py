"""The Fréchet distance of the Gaussians fitted to two sets of features."""

from __future__ import annotations

from gentrain.evaluation.gaussian import Gaussian, frechet, frechet_distance

__all__ = ["Gaussian", "frechet", "frechet_distance"]
