"""The names of all scores that gentrain gives, by what a system must be able to do to have them.

A table is made without any part of evaluation, and yet must tell a score that nobody measured from a word that is no
score. ``{D}`` stands for an extractor's Fréchet distance, ``{X}`` for the suffix of its other scores, ``{N}`` for a
number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

OF_IMAGES = (
    *("{D}", "{D}_sd", "{D}_inf", "{D}_train", "{D}_floor"),
    *("kid{X}", "kid{X}_sd", "is{X}", "is{X}_sd", "precision{X}", "recall{X}", "density{X}", "coverage{X}"),
    *("copy_rate{X}", "copy_rate_real{X}", "authenticity{X}", "authenticity_real{X}"),
    *("copy_rate_pixels", "copy_rate_real_pixels", "authenticity_pixels", "authenticity_real_pixels"),
    *("classes_shown", "label_entropy_nats", "swd_mean", "swd_{N}", "ms_ssim", "ms_ssim_real"),
)
"""Scores of samples that are images."""

BY_CLASS = ("{D}_by_class", "label_accuracy", "cas", "cas_real")
"""Scores of images that were asked to be of a class."""

OF_VECTORS = ("modes_covered", "modes_total", "high_quality", "swd")
OF_EITHER = ("reverse_kl_nats", "parzen_nats_unreliable", "parzen_nats_unreliable_se", "parzen_sigma")

LIKELIHOODS = (
    *("nll_nats", "nll_nats_se", "elbo_nats", "iw_bound_nats"),
    *("bits_per_dim", "bits_per_dim_{N}bit"),
)
OF_RBMS = ("nll_nats_ais", "log_z", "log_z_sd")
RECONSTRUCTIONS = ("reconstruction_mse", "reconstruction_psnr", "{D}_reconstructed")
OF_CODES = tuple(f"cluster_{score}{of}" for of in ("", "_pixels", "_pca") for score in ("accuracy", "nmi", "ari"))
OF_CLUSTERS = (
    *("cluster_accuracy_own", "cluster_nmi_own", "cluster_ari_own"),
    *("cluster_accuracy_confident", "clusters_used"),
)
CLASSIFIED = ("classification_error",)
COMPRESSED = ("rate_estimated_bpp", "rate_bpp", "compressed_psnr", "compressed_ms_ssim")

EVERY = (
    *(*OF_IMAGES, *BY_CLASS, *OF_VECTORS, *OF_EITHER, *LIKELIHOODS, *OF_RBMS),
    *(*RECONSTRUCTIONS, *OF_CODES, *OF_CLUSTERS, *CLASSIFIED, *COMPRESSED),
)
EXTRACTORS = {"fid": "", "fd_domain": "_domain", "fd_dinov2": "_dinov2", "fd_mobilenetv2": "_mobilenetv2"}
"""Of each extractor that ships: the name of its distance, and the suffix of its other scores."""

ANY = {"D": r"(?:fid|fd(?:_[a-z0-9]+)?)", "X": r"(?:_[a-z0-9]+)?", "N": "[0-9]+"}
"""Of any extractor, a user's own too; ``fd`` alone is a column that stands for all of them."""


def spelt() -> list[str]:
    """All that can be written out, to find the nearest to a misspelt one."""
    names = [name for name in EVERY if "{N}" not in name]
    return list(dict.fromkeys(name.format(D=d, X=x) for d, x in EXTRACTORS.items() for name in names))


def is_known(name: str) -> bool:
    """Whether a metric that ships gives a score of this name."""
    return any(_pattern(EVERY, {"D": d, "X": x, "N": ANY["N"]}).fullmatch(name) for d, x in EXTRACTORS.items())


def is_one_of(name: str, kind: tuple[str, ...]) -> bool:
    """Whether it is a score of a kind, under whatever extractor."""
    return bool(_pattern(kind, ANY).fullmatch(name))


def _pattern(names: tuple[str, ...], parts: Mapping[str, str]) -> re.Pattern[str]:
    return re.compile("|".join(name.format(**parts) for name in names))
