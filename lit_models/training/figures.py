"""Figures for TensorBoard, by matplotlib without pyplot or a display, and boxes on pictures."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from matplotlib import colormaps, get_data_path
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

ORANGE = "#ff9f1c"
COLORS = {"persistence": "tab:blue", "drift": "tab:purple", "seasonal_naive": "tab:green"}  # of baselines


def new_axes(width: float, height: float) -> Axes:
    """The axes of a new figure, whose size is in inches."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def escape_names(names: Sequence[str]) -> list[str]:
    """Names that matplotlib shows literally: without formulas between dollars or invalid Unicode."""
    return [name.encode("utf-8", "replace").decode().replace("$", r"\$") for name in names]


def shorten(name: str) -> str:
    """A name of at most 22 letters, cut in the middle."""
    return name if len(name) <= 22 else f"{name[:11]}…{name[-10:]}"


def plot_confusion_matrix(counts: Tensor, names: list[str]) -> Figure:
    """Confusion matrix `(true, predicted)`, shaded by the fraction of the true class; over 50 classes without text."""
    names, classes = escape_names(names), len(names)
    side = min(max(4.0, 0.45 * classes) + 0.08 * max(map(len, names)), 20.0)
    axes = new_axes(side, side)
    fractions = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    # The square root makes one in a thousand visible beside the 99 in a hundred on the diagonal.
    axes.imshow(fractions.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{int(counts.trace())} of {int(counts.sum())} right")
    if classes > 50:
        axes.set(xticks=[], yticks=[])
        return axes.figure
    axes.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(classes), names)
    for row, column in counts.nonzero().tolist():
        color = "white" if fractions[row, column] > 0.4 else "black"
        count = int(counts[row, column])
        axes.text(column, row, count, ha="center", va="center", color=color, fontsize=8 if count < 1000 else 7)
    return axes.figure


def plot_misclassified(
    confidence: Tensor, predicted: Tensor, labels: Tensor, images: Tensor, names: list[str]
) -> Figure:
    """The most confidently misclassified images, with predicted class, its probability, and true class.

    Long names are cut in the middle; the confusion matrix has them in full. `confidence` is negative where the
    prediction is correct; `images` `(count, channels, height, width)` are uint8 in 0..255 or float in 0..1.
    """
    wrong = int((confidence >= 0).sum())
    columns = min(5, max(1, wrong))
    rows = max(1, math.ceil(wrong / columns))
    _, channels, height, width = images.shape
    images = images.float() / (1 if images.is_floating_point() else 255)
    if channels not in (1, 3):  # which cannot be shown as colors
        images, channels = images.mean(dim=1, keepdim=True), 1
    shown, long = escape_names([shorten(name) for name in names]), max(map(len, names)) > 4
    break_or_space = "\n" if long else " "
    captions = [
        f"{shown[guess]} {sure:.0%}{break_or_space}({shown[label]})"
        for guess, sure, label in zip(*(part[:wrong].tolist() for part in (predicted, confidence, labels)), strict=True)
    ]
    side = max(height, width)  # an inch
    cell_height = height + (side // 2 if long else side // 3)
    cell_width = width + (side * 3 // 2 if long else side // 3)
    sheet = torch.ones(rows * cell_height, columns * cell_width, channels)
    axes = new_axes(max(2.6, columns * cell_width / side), rows * cell_height / side + 0.4)
    axes.set_axis_off()
    axes.set_title("predicted, its probability (true)" if wrong else "no mistakes", fontsize=10)
    for index, caption in enumerate(captions):
        bottom, left = (index // columns + 1) * cell_height, index % columns * cell_width + (cell_width - width) // 2
        sheet[bottom - height : bottom, left : left + width] = images[index].permute(1, 2, 0)
        text = axes.text(left + width / 2, bottom - height - 1, caption, ha="center", va="bottom", fontsize=9 - long)
        text.set_in_layout(False)  # which would make room for it by shrinking the images
    axes.imshow(sheet.squeeze(2).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
    return axes.figure


def plot_forecast(
    context: Tensor,
    target: Tensor,
    forecast: Tensor,
    baselines: dict[str, Tensor],
    names: list[str],
    bands: Tensor | None = None,
) -> Figure:
    """A free-running forecast `(horizon, columns)` over context and target, and thinly those of the baselines.

    The first four columns are drawn, and quantiles `(horizon, quantiles, columns)` as a band from first to last.
    """
    shown = escape_names(names[:4])
    figure = Figure(figsize=(9, 0.8 + 2.2 * len(shown)), layout="constrained")
    horizon = len(target)
    truth, rows = torch.cat([context, target]), range(-len(context), horizon)
    for column, axes in enumerate(figure.subplots(len(shown), squeeze=False, sharex=True)[:, 0]):
        axes.plot(rows, truth[:, column], color="0.6", linewidth=3, label="truth")
        for label, rest in (baselines | {"forecast": forecast}).items():
            # It begins at the last true value, so that the line has no gap.
            ahead = torch.cat([context[-1:, column], rest[:, column]])
            color, width = (COLORS[label], 0.9) if label in COLORS else ("tab:orange", 1.5)
            axes.plot(range(-1, horizon), ahead, label=label.replace("_", " "), color=color, linewidth=width)
        if bands is not None:
            axes.fill_between(range(horizon), *bands[:, [0, -1], column].T, color="tab:orange", alpha=0.2, linewidth=0)
        axes.axvline(-0.5, color="tab:gray", linestyle=":", linewidth=1, label="start of the forecast")
        axes.set_ylabel(shown[column])
    axes.set_xlabel("rows after the first forecast one")
    figure.legend(loc="outside upper center", ncols=6, handles=axes.get_lines(), frameon=False)
    return figure


def plot_error_by_horizon(errors: Tensor) -> Figure:
    """NRMSE of a free-running forecast by the number of rows ahead, `(horizon,)`."""
    axes = new_axes(6, 3.5)
    axes.plot(range(1, len(errors) + 1), errors, color="tab:orange", marker="." if len(errors) < 50 else "")
    axes.set(xlabel="rows ahead", ylabel="NRMSE", yscale="log", title="error of the free-running forecast")
    axes.grid(which="both", alpha=0.3)
    return axes.figure


def plot_returns(train_returns: Sequence[tuple[int, float]], eval_returns: Sequence[tuple[int, float]]) -> Figure:
    """Learning curve of an agent, from points of environment steps and mean episode return."""
    axes = new_axes(9, 4)
    for points, color, label in (
        (train_returns, "0.6", "in training (episode/return)"),
        (eval_returns, "tab:orange", "greedy (eval/return)"),
    ):
        if points:
            axes.plot(*zip(*points, strict=True), color=color, label=label, marker="." if len(points) < 50 else "")
    axes.set(xlabel="environment steps", ylabel="mean return")
    axes.grid(alpha=0.3)
    axes.figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return axes.figure


def plot_policy(
    names: tuple[str, str],
    x: Tensor,
    y: Tensor,
    action: Tensor,
    value: Tensor,
    bounds: tuple[float, float],
    title: str,
    value_label: str,
) -> Figure:
    """Maps of an agent's actions and values, `(rows, columns)` each, at the points x `(columns,)` and y `(rows,)`.

    Actions within `bounds` are floats, or integers if they are choices, which have a color each.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    low, high = bounds
    shades = {"cmap": "RdBu_r", "vmin": low, "vmax": high, "interpolation": "bilinear"}
    if choices := not action.is_floating_point():
        count = round(high - low) + 1
        colors = ListedColormap(colormaps["Set2"].colors[:count]) if count <= 8 else colormaps["turbo"].resampled(count)
        shades = {"cmap": colors, "vmin": low - 0.5, "vmax": high + 0.5, "interpolation": "nearest"}
    elif not math.isfinite(high - low):
        shades |= {"vmin": -float(action.abs().max()), "vmax": float(action.abs().max())}
    columns, rows = (float(points[1] - points[0]) / 2 for points in (x, y))  # half of their size
    extent = (float(x[0]) - columns, float(x[-1]) + columns, float(y[0]) - rows, float(y[-1]) + rows)
    for axes, numbers, options in ((left, action, shades), (right, value, {"interpolation": "bilinear"})):
        axes.imshow(numbers.numpy(), origin="lower", extent=extent, aspect="auto", **options)
        axes.set(xlabel=names[0], xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    figure.colorbar(left.images[0], ax=left, ticks=MaxNLocator(integer=True) if choices else None)
    figure.colorbar(right.images[0], ax=right, label=value_label)
    left.set(ylabel=names[1], title=title)
    right.set_title("value of the state")
    return figure


def plot_roc(far: Tensor, tar: Tensor, error: float) -> Figure:
    """ROC curve, true-accept over logarithmic false-accept rate, with the equal error rate marked."""
    axes = new_axes(5.5, 4.5)
    least = max(float(far[far > 0].min()), 1e-5)
    axes.plot(far.clamp(min=least / 2), tar, color="tab:orange")
    axes.plot([error], [1 - error], "o", color="tab:gray", label=f"equal error rate {error:.2%}")
    axes.set(xscale="log", xlim=(least / 2, 1), ylim=(0, 1.02))
    axes.set(xlabel="false-accept rate", ylabel="true-accept rate")
    axes.grid(which="both", alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    return axes.figure


def plot_similarities(genuine: Tensor, impostor: Tensor, threshold: float) -> Figure:
    """Histograms of the similarities, cosines, of genuine and impostor pairs."""
    axes = new_axes(6, 3.5)
    edges = (float(torch.cat([genuine, impostor]).min()) - 0.01, 1.01)
    for values, color, label in ((impostor, "0.6", "two people"), (genuine, "tab:orange", "the same person")):
        axes.hist(values.numpy(), bins=60, range=edges, density=True, color=color, alpha=0.7, label=label)
    axes.axvline(threshold, color="black", linestyle=":", linewidth=1, label=f"threshold {threshold:.2f}")
    axes.set(xlabel="similarity of a pair", ylabel="density")
    axes.figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return axes.figure


def plot_pairs(first: Tensor, second: Tensor, captions: list[str], title: str) -> Figure:
    """Pairs of images side by side, from two batches `(count, channels, height, width)`, uint8, of 1 or 3 channels."""
    count, captions = len(first), escape_names(captions)
    columns = min(4, max(1, count))
    rows = max(1, math.ceil(count / columns))
    figure = Figure(figsize=(2.6 * columns, 1.7 * rows + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=15)
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if index < count:
            pair = torch.cat([first[index], second[index]], dim=2).permute(1, 2, 0)
            axes.imshow(pair.squeeze(2).numpy(), cmap="gray", vmin=0, vmax=255)
            axes.set_title(captions[index], fontsize=13)
    return figure


def draw_boxes(
    picture: Image.Image, boxes: Sequence[tuple[float, float, float, float]], captions: list[str]
) -> Image.Image:
    """A copy of a picture with captioned boxes; a caption in letters that no font has is replaced by a number.

    Boxes are left, top, width and height, in pixels. torchvision's `draw_bounding_boxes` writes inside of the box,
    over the face, and in one font for all of them.
    """
    copy = picture.copy()
    canvas, size = ImageDraw.Draw(copy), max(12, round(max(picture.size) / 50))
    for number, ((left, top, width, height), caption) in enumerate(zip(boxes, captions, strict=True), start=1):
        text = " ".join(caption.encode("utf-8", "replace").decode().split())
        path = font_for(text)
        font = ImageFont.truetype(path or font_for(""), size)
        text = text if path else f"face {number}"
        canvas.rectangle((left, top, left + width, top + height), outline=ORANGE, width=max(2, size // 8))
        edges = canvas.textbbox((left, top + height), text, font=font)
        # To the left and upwards, where the caption would leave the picture.
        x = max(0, left + min(0, picture.width - edges[2] - 2))
        y = top + height + min(0, picture.height - edges[3] - 2)
        edges = canvas.textbbox((x, y), text, font=font)
        canvas.rectangle((edges[0] - 2, edges[1] - 2, edges[2] + 2, edges[3] + 2), fill=ORANGE)
        canvas.text((x, y), text, fill="black", font=font)
    return copy


@cache
def font_for(text: str) -> str | None:
    """File of a font that has all letters of a text, matplotlib's own if possible; None, if there is none."""
    own = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    fonts = [font for font in fontManager.ttflist if font.style == "normal" and not font.name.startswith("Last Resort")]
    files = (str(own), *(font.fname for font in fonts))  # Last Resort has a box for every letter
    return next((path for path in files if all(map(get_font(path).get_char_index, map(ord, text)))), None)
