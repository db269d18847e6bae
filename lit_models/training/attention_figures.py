"""Figures of attention, for TensorBoard."""

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lit_models.training.figures import escape_names, new_axes


def plot_image_attention(image: Tensor, weights: Tensor) -> Figure:
    """An image, and for each layer and head what it attends to: `(layers, heads, side, side)`, over the image.

    The image `(channels, height, width)` is uint8 in 0..255 or float in 0..1; other than 1 or 3 channels are averaged.
    """
    layers, heads, *_ = weights.shape
    shown = image.float() / (1 if image.is_floating_point() else 255)
    shown = (shown if len(shown) in (1, 3) else shown.mean(dim=0, keepdim=True)).permute(1, 2, 0).clamp(0, 1)
    height, width, _ = shown.shape
    figure = Figure(figsize=(1.1 * (heads + 1) + 0.3, 1.1 * layers * height / width + 0.4), layout="constrained")
    for layer, row in enumerate(figure.subplots(layers, heads + 1, squeeze=False)):
        for head, axes in enumerate(row, start=-1):
            axes.set(xticks=[], yticks=[])
            axes.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1)
            if head >= 0:
                extent = (-0.5, width - 0.5, height - 0.5, -0.5)
                axes.imshow(weights[layer, head].numpy(), cmap="inferno", alpha=0.7, extent=extent)
            elif layer:
                axes.set_visible(False)
            if layer == 0:
                axes.set_title(f"head {head + 1}" if head >= 0 else "image", fontsize=8)
        row[1].set_ylabel(f"block {layer + 1}", fontsize=8)
    return figure


def plot_text_attention(tokens: list[str], weights: Tensor) -> Figure:
    """What each token attends to, `(layers, heads, time, time)`: a row per token, a column per token before it."""
    layers, heads, *_ = weights.shape
    shown = [token.replace("\n", "\u23ce").replace(" ", "\u2423") for token in escape_names(tokens)]
    figure = Figure(figsize=(2.4 * heads + 0.3, 2.4 * layers + 0.4), layout="constrained")
    for layer, row in enumerate(figure.subplots(layers, heads, squeeze=False)):
        for head, axes in enumerate(row):
            axes.imshow(weights[layer, head].numpy(), cmap="inferno", vmin=0)
            axes.set_xticks(range(len(shown)), shown, fontsize=5)
            axes.set_yticks(range(len(shown)), shown, fontsize=5)
            axes.set_title(f"block {layer + 1}, head {head + 1}", fontsize=8)
    return figure


def plot_positions(similarity: Tensor) -> Figure:
    """Cosine similarity of the vectors of positions `(rows, columns, rows, columns)`: a map for each, at its place."""
    rows, columns = similarity.shape[:2]
    apart = torch.full((rows, columns, rows + 1, columns + 1), math.nan)  # a gap between the maps
    apart[:, :, :rows, :columns] = similarity
    sheet = apart.transpose(1, 2).reshape(rows * (rows + 1), columns * (columns + 1))[:-1, :-1]
    axes = new_axes(5.5, 5 * rows / columns)
    drawn = axes.imshow(sheet.numpy(), cmap="viridis", vmin=-1, vmax=1)
    axes.set_axis_off()
    axes.set_title("similarity of each position to all others", fontsize=10)
    axes.figure.colorbar(drawn, shrink=0.8, label="cosine similarity")
    return axes.figure
