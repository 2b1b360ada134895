"""The rate-distortion curve of compression runs beside JPEG and WebP on the same test images: a PNG and a JSON.

    python scripts/rate_distortion.py RUN [RUN ...] [--out FOLDER] [--images 1000]

Rates and PSNR of the runs are those of their run cards (metric ``compression``, any folder below RUN counts). All runs
must have seen the same data. The codecs' files are shown twice: one for each image, and all images on one sheet, where
the head is paid once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gentrain.config import build
from gentrain.data.dataset import spread
from gentrain.errors import UserError, guarded
from gentrain.evaluation.rate_distortion import CodecPoint, codec_points
from gentrain.folder import RunFolder

QUALITIES = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90)
MARKS = {("JPEG", "sheet"): "C1--", ("WEBP", "sheet"): "C2--", ("JPEG", "single"): "C1:", ("WEBP", "single"): "C2:"}


def learned(places: Sequence[Path]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Points of the runs, by rising rate, and the config of their data. UserError for none, or for several data."""
    points, data = [], []
    for file in sorted({found for place in places for found in place.rglob("run.json")}):
        folder = RunFolder.open(file.parent)
        scores = folder.card().get("final") or {}
        if "rate_estimated_bpp" not in scores:
            continue
        config = folder.config()
        data.append(config["data"])
        names = ("rate_bpp", "rate_estimated_bpp", "compressed_psnr", "compressed_ms_ssim")
        found = {name: scores[name] for name in names if name in scores}
        points.append({"run": file.parent.name, "distortion_weight": config["model"].get("distortion_weight"), **found})
    if not points:
        raise UserError(f"{', '.join(map(str, places))}: no finished run with the metric compression in it")
    if any(some != data[0] for some in data):
        raise UserError("the runs were made on different data: a curve needs one")
    return sorted(points, key=lambda point: point["rate_estimated_bpp"]), data[0]


def draw(points: list[dict[str, Any]], codecs: list[CodecPoint], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    real = all("rate_bpp" in point for point in points)
    rate = "rate_bpp" if real else "rate_estimated_bpp"
    for axes, key, unit in zip(figure.subplots(1, 2), ("psnr", "ms_ssim"), ("PSNR, dB", "MS-SSIM"), strict=True):
        for (codec, layout), style in MARKS.items():
            some = [point for point in codecs if (point.codec, point.layout) == (codec, layout)]
            name = {"JPEG": "JPEG", "WEBP": "WebP"}[codec]
            label = f"{name}, {'one file each' if layout == 'single' else 'all on one sheet'}"
            axes.plot([p.bpp for p in some], [getattr(p, key) for p in some], style, marker=".", label=label)
        values = [point[f"compressed_{key}"] for point in points]
        axes.plot([p[rate] for p in points], values, "C0o-", label=f"learned, {'range coded' if real else 'estimated'}")
        axes.set(xscale="log", xlabel="bits per pixel", ylabel=unit)
        axes.xaxis.set_major_locator(FixedLocator([2.0**power for power in range(-6, 6)]))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=True, which="both", alpha=0.25)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(MARKS) + 1, fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("outputs/rate_distortion"))
    parser.add_argument("--images", type=int, default=1000, help="test images for the codecs, spread over the split")
    given = parser.parse_args()
    points, node = learned(given.runs)
    data = build(node, trusted=False, where="data")
    x = data.test.take(spread(len(data.test), min(given.images, len(data.test)))).x
    codecs = list(codec_points(x, QUALITIES))
    given.out.mkdir(parents=True, exist_ok=True)
    report = {"data": data.name, "images": len(x), "learned": points, "codecs": [asdict(point) for point in codecs]}
    (given.out / "rate_distortion.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(points, codecs, given.out / "rate_distortion.png")
    print(given.out / "rate_distortion.png")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
