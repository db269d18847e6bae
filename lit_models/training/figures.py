"""The pictures that the callbacks put into TensorBoard, drawn with matplotlib, without pyplot or a display."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from matplotlib import get_data_path
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

ORANGE = "#ff9f1c"


def plain(names: Sequence[str]) -> list[str]:
    """Names that matplotlib shows as they are: no formulas between dollars, and nothing that isn't Unicode."""
    return [name.encode("utf-8", "replace").decode().replace("$", r"\$") for name in names]


def plot_confusion_matrix(counts: Tensor, names: list[str]) -> Figure:
    """A confusion matrix: rows are true classes, columns predicted ones, shades the share of the row.

    Args:
        counts: `(classes, classes)`, images by true and predicted class.
        names: The classes by label.
    """
    names, classes = plain(names), len(names)
    side = max(4.0, 0.45 * classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    # The square root makes a share of one in a thousand visible beside the diagonal's 99 in a hundred.
    axes.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(classes), names)
    axes.set(xlabel="predicted", ylabel="true", title=f"{int(counts.trace())} of {int(counts.sum())} right")
    for row, column in counts.nonzero().tolist():
        colour = "white" if shares[row, column] > 0.4 else "black"
        count = int(counts[row, column])
        axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=8 if count < 1000 else 7)
    return figure


def plot_misclassified(
    confidence: Tensor, predicted: Tensor, labels: Tensor, images: Tensor, names: list[str]
) -> Figure:
    """The images that a model gets most confidently wrong, with what it said and what was true.

    Args:
        confidence: `(count,)`, the probability of the predicted class; below 0 where the model was right.
        predicted: `(count,)`, labels.
        labels: `(count,)`, the true ones.
        images: `(count, channels, height, width)`, uint8 in 0..255 or float in 0..1.
        names: The classes by label.
    """
    names, wrong = plain(names), int((confidence >= 0).sum())
    columns = min(5, max(1, wrong))
    rows = max(1, math.ceil(wrong / columns))
    _, channels, height, width = images.shape
    images = images.float() / (1 if images.is_floating_point() else 255)
    if channels not in (1, 3):  # no colours that could be shown
        images, channels = images.mean(dim=1, keepdim=True), 1
    margin = max(2, height // 3)  # room for the words, in the image's own pixels
    sheet = torch.ones(rows * (height + margin), columns * (width + margin), channels)
    figure = Figure(figsize=(1.3 * columns, 1.3 * rows + 0.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_title("predicted, its probability (true)" if wrong else "no mistakes", fontsize=10)
    for place in range(wrong):
        top, left = place // columns * (height + margin) + margin, place % columns * (width + margin) + margin // 2
        sheet[top : top + height, left : left + width] = images[place].permute(1, 2, 0)
        words = f"{names[predicted[place]]} {confidence[place]:.0%} ({names[labels[place]]})"
        axes.text(left + width / 2, top - 1, words, ha="center", va="bottom", fontsize=9)
    axes.imshow(sheet.squeeze(2).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
    return figure


def plot_forecast(past: Tensor, future: Tensor, predicted: Tensor, names: list[str]) -> Figure:
    """A forecast over the truth, with the place where it begins to run free.

    Args:
        past: `(window, columns)`, what is known.
        future: `(horizon, columns)`, what came.
        predicted: `(horizon, columns)`, what was forecast.
        names: The columns; the first four are shown.
    """
    shown = plain(names[:4])
    figure = Figure(figsize=(9, 0.8 + 2.2 * len(shown)), layout="constrained")
    window, horizon = len(past), len(future)
    truth, rows = torch.cat([past, future]), range(-window, horizon)
    for column, axes in enumerate(figure.subplots(len(shown), squeeze=False, sharex=True)[:, 0]):
        axes.plot(rows, truth[:, column], color="0.6", linewidth=3, label="truth")
        # From the last known value on, so that the line has no gap.
        ahead = torch.cat([past[-1:, column], predicted[:, column]])
        axes.plot(range(-1, horizon), ahead, color="tab:orange", linewidth=1.2, label="forecast")
        axes.axvline(-0.5, color="tab:gray", linestyle=":", linewidth=1, label="runs free from here")
        axes.set_ylabel(shown[column])
    axes.set_xlabel("rows from the first that is forecast")
    figure.legend(loc="outside upper center", ncols=3, handles=axes.get_lines(), frameon=False)
    return figure


def plot_error_by_horizon(errors: Tensor) -> Figure:
    """The error of a forecast against the rows ahead.

    Args:
        errors: `(horizon,)`, root mean squares over the standard deviation of the series.
    """
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(range(1, len(errors) + 1), errors, color="tab:orange", marker="." if len(errors) < 50 else "")
    axes.set(xlabel="rows ahead", ylabel="NRMSE", yscale="log", title="error of the forecast running free")
    axes.grid(which="both", alpha=0.3)
    return figure


def plot_returns(played: Sequence[tuple[int, float]], evaluated: Sequence[tuple[int, float]]) -> Figure:
    """Returns of an agent's episodes against the environment steps.

    Args:
        played: Steps, and the mean return of the episodes that ended since the last ones, in training.
        evaluated: Steps, and the mean return of the greedy policy.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    for points, colour, label in (
        (played, "0.6", "in training (episode/return)"),
        (evaluated, "tab:orange", "greedy (eval/return)"),
    ):
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, label=label, marker="." if len(points) < 50 else "")
    axes.set(xlabel="environment steps", ylabel="mean return")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def plot_roc(far: Tensor, tar: Tensor, error: float) -> Figure:
    """The true-accept rate against the false-accept rate, on a scale that shows small ones.

    Args:
        far: `(points,)`, false-accept rates in 0..1.
        tar: `(points,)`, true-accept rates in 0..1.
        error: The equal error rate, whose place is marked.
    """
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    least = max(float(far[far > 0].min()), 1e-5)
    axes.plot(far.clamp(min=least / 2), tar, color="tab:orange")
    axes.plot([error], [1 - error], "o", color="tab:gray", label=f"equal error rate {error:.2%}")
    axes.set(xscale="log", xlim=(least / 2, 1), ylim=(0, 1.02))
    axes.set(xlabel="false-accept rate", ylabel="true-accept rate")
    axes.grid(which="both", alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    return figure


def plot_similarities(genuine: Tensor, impostor: Tensor, threshold: float) -> Figure:
    """Histograms of the similarities of genuine and impostor pairs.

    Args:
        genuine: `(pairs,)`, cosines.
        impostor: `(pairs,)`, cosines.
        threshold: From which on a pair is accepted.
    """
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    edges = (float(torch.cat([genuine, impostor]).min()) - 0.01, 1.01)
    for values, colour, label in ((impostor, "0.6", "two people"), (genuine, "tab:orange", "the same person")):
        axes.hist(values.numpy(), bins=60, range=edges, density=True, color=colour, alpha=0.7, label=label)
    axes.axvline(threshold, color="black", linestyle=":", linewidth=1, label=f"threshold {threshold:.2f}")
    axes.set(xlabel="similarity of a pair", ylabel="density")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def plot_pairs(first: Tensor, second: Tensor, words: list[str], title: str) -> Figure:
    """Pairs of images side by side.

    Args:
        first: `(count, channels, height, width)`, uint8, with 1 or 3 channels.
        second: The other image of each pair.
        words: What stands above each.
        title: What stands above all.
    """
    count, words = len(first), plain(words)
    columns = min(4, max(1, count))
    rows = max(1, math.ceil(count / columns))
    figure = Figure(figsize=(2.6 * columns, 1.7 * rows + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=15)
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if place < count:
            both = torch.cat([first[place], second[place]], dim=2).permute(1, 2, 0)
            axes.imshow(both.squeeze(2).numpy(), cmap="gray", vmin=0, vmax=255)
            axes.set_title(words[place], fontsize=13)
    return figure


def draw_boxes(
    picture: Image.Image, boxes: Sequence[tuple[float, float, float, float]], words: list[str]
) -> Image.Image:
    """A copy of a picture with boxes, each with words below it, or with its number, where no font has the letters.

    Args:
        picture: In RGB.
        boxes: Left, top, width and height, in pixels.
        words: What stands below each.
    """
    copy = picture.copy()
    canvas, size = ImageDraw.Draw(copy), max(12, round(max(picture.size) / 50))
    for number, (box, text) in enumerate(zip(boxes, words, strict=True), start=1):
        left, top, width, height = box
        line = " ".join(text.encode("utf-8", "replace").decode().split())
        path = font_for(line)
        font = ImageFont.truetype(path or font_for(""), size)
        line = line if path else f"face {number}"
        canvas.rectangle((left, top, left + width, top + height), outline=ORANGE, width=max(2, size // 8))
        edges = canvas.textbbox((left, top + height), line, font=font)
        down = min(0, picture.height - edges[3] - 2)  # inside of the picture, where the face is at its lower edge
        canvas.rectangle((edges[0] - 2, edges[1] + down - 2, edges[2] + 2, edges[3] + down + 2), fill=ORANGE)
        canvas.text((left, top + height + down), line, fill="black", font=font)
    return copy


@cache
def font_for(text: str) -> str | None:
    """The file of a font that has all letters of a text: matplotlib's own, or else one of the system's."""
    own = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    files = (str(own), *(entry.fname for entry in fontManager.ttflist if entry.style == "normal"))
    return next((path for path in files if all(map(get_font(path).get_char_index, map(ord, text)))), None)
