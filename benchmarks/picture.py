"""Draw the picture at the top of the README: distilled images, and the accuracy they give.

``python -m benchmarks.picture RUN [FILE]`` takes a finished run; FILE is results/cifar10.webp.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

import ltdd
from ltdd.results.distilled_set import DistilledSet

TARGET = Path(__file__).parent / "results/cifar10.webp"
SCALE, GAP, MARGIN, LABELS, BARS = 2, 4, 16, 108, 520
INK, SOFT, ACCENT, GREY = "#1c2733", "#52606d", "#2a6fb0", "#c3ccd5"
TITLES = {
    "student": "distilled images",
    "random_real": "as many random real images",
    "full_long_tailed": "all real images",
    "teacher": "the teacher",
}
MOST_BYTES = 300_000


def image_grid(distilled: DistilledSet) -> Image.Image:
    """Return one row of images per class, largest class first, with its name and size."""
    counts, labels = distilled.manifest["counts"], distilled.labels
    order = sorted(range(len(counts)), key=lambda label: (-counts[label], label))
    per_class, side = len(labels) // len(counts), SCALE * distilled.images.shape[-1]
    cell = side + GAP
    grid = Image.new("RGB", (LABELS + per_class * cell, len(order) * cell), "white")
    draw = ImageDraw.Draw(grid)
    for row, label in enumerate(order):
        top = row * cell
        draw.text((0, top + side // 2 - 18), distilled.class_names[label], INK, font(16))
        draw.text((0, top + side // 2 + 2), f"{counts[label]:,} images", SOFT, font(12))
        for column, image in enumerate(distilled.images[labels == label]):
            picture = Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).convert("RGB")
            place = (LABELS + column * cell, top)
            grid.paste(picture.resize((side, side), Image.Resampling.NEAREST), place)
    return grid


def accuracy_bars(results: dict[str, Any], height: int) -> Image.Image:
    """Return bars of the accuracy over all classes and over the tail, in percent."""
    scores = {"student": results["student"], **results["baselines"], "teacher": results["teacher"]}
    rows = [(title, scores[who]) for who, title in TITLES.items() if who in scores]
    chart = Image.new("RGB", (BARS, height), "white")
    draw = ImageDraw.Draw(chart)
    draw.text((0, 0), "accuracy on balanced test images, %", INK, font(16))
    draw.text((0, 24), "all classes", ACCENT, font(13))
    draw.text((84, 24), "rarest third", SOFT, font(13))
    step = (height - 56) // len(rows)
    for number, (title, score) in enumerate(rows):
        top = 56 + number * step
        draw.text((0, top), title, INK, font(14))
        for place, (group, color) in enumerate((("accuracy", ACCENT), ("tail", GREY))):
            value, y = 100 * score[group]["mean"], top + 24 + 24 * place
            draw.rectangle((0, y, value * (BARS - 60) / 100, y + 18), color)
            draw.text((value * (BARS - 60) / 100 + 8, y), f"{value:.1f}", INK, font(14))
    return chart


def font(size: int) -> Any:
    """Return Pillow's own font, which every machine has."""
    return ImageFont.load_default(size)


def draw_picture(run: Path, target: Path) -> None:
    """Write the picture of a finished run.

    Raises:
        SystemExit: the run was not evaluated, or the file would be too large for a README.
    """
    distilled = ltdd.load(run)
    if distilled.results is None:
        sys.exit(f"expected a finished run in {run}, got one without results.json")
    grid = image_grid(distilled)
    chart = accuracy_bars(distilled.results, grid.height)
    size = (grid.width + chart.width + 3 * MARGIN, grid.height + 2 * MARGIN)
    picture = Image.new("RGB", size, "white")
    picture.paste(grid, (MARGIN, MARGIN))
    picture.paste(chart, (grid.width + 2 * MARGIN, MARGIN))
    picture.save(target, "WEBP", quality=80, method=6)
    if target.stat().st_size > MOST_BYTES:
        sys.exit(f"expected at most {MOST_BYTES} bytes, got {target.stat().st_size} in {target}")
    print(f"{target}: {picture.width}x{picture.height}, {target.stat().st_size} bytes")


if __name__ == "__main__":
    draw_picture(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else TARGET)
