"""The pictures that the callbacks put into TensorBoard, drawn with matplotlib, without pyplot or a display."""

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor


def confusion(counts: Tensor, names: list[str]) -> Figure:
    """A confusion matrix: rows are true classes, columns predicted ones, shades the share of the row.

    Args:
        counts: `(classes, classes)`, images by true and predicted class.
        names: The classes by label.
    """
    classes = len(names)
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


def mistakes(confidence: Tensor, predicted: Tensor, labels: Tensor, images: Tensor, names: list[str]) -> Figure:
    """The images that a model gets most confidently wrong, with what it said and what was true.

    Args:
        confidence: `(count,)`, the probability of the predicted class; below 0 where the model was right.
        predicted: `(count,)`, labels.
        labels: `(count,)`, the true ones.
        images: `(count, 1 or 3, height, width)`, uint8 in 0..255 or float in 0..1.
        names: The classes by label.
    """
    wrong = int((confidence >= 0).sum())
    columns = min(5, max(1, wrong))
    rows = max(1, math.ceil(wrong / columns))
    _, channels, height, width = images.shape
    images = images.float() / (1 if images.is_floating_point() else 255)
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
