"""One's own digits: MNIST's test digits drawn anew in many ways, and read as `predict --images` reads them.

A network is trained by `mnist.yaml`. For each seed, 100 of the test digits are drawn at random, put on paper, boards
and canvases (`benchmarks.drawing`), read and classified. The same for pages of several digits, which count as right if
all are, in their order; for empty pages and cut digits, which are to be noted; and for MNIST's pictures as they are.
"""

import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import lit_models
from benchmarks import drawing
from benchmarks.common import options_parser, parse, train, write_results
from datamodules import MNISTDataModule
from datamodules.common.digits import read_digits

Read = tuple[list[int], list[str], float]  # labels, notes, milliseconds


def main() -> None:
    """Runs, and writes benchmarks/results/digits.json."""
    parser = options_parser("digits", __doc__)
    parser.add_argument("--seeds", type=int, default=3, help="draws of the digits, from seed 1 on (default: 3)")
    parser.add_argument("--digits", type=int, default=100, help="digits of a draw, in each of the ways (default: 100)")
    parser.add_argument("--checkpoint", help="of a network on MNIST; trained with seed 0, if not given")
    options = parse(parser, "pillow")
    if options.checkpoint:
        model = lit_models.load(options.checkpoint).eval()
    else:
        with tempfile.TemporaryDirectory() as name:
            model = train("mnist.yaml", 0, Path(name), []).model.eval().cpu()
    data = MNISTDataModule()
    data.setup("test")
    glyphs = [Image.fromarray(image[0].numpy()) for image in data.test_set.images]
    labels = data.test_set.labels.tolist()

    @torch.no_grad()
    def read(picture: Image.Image) -> Read:
        content = io.BytesIO()
        picture.save(content, "PNG", compress_level=1, exif=picture.info.get("exif", b""))
        content.seek(0)
        start = time.process_time()  # the clock would count what else the machine does
        images, notes = read_digits(content)
        milliseconds = 1000 * (time.process_time() - start)
        return model(images).argmax(dim=1).tolist(), notes, milliseconds

    write_results(options, pages=pages(options, glyphs, labels, read))
    write_results(options, ways=ways(options, glyphs, labels, read))
    right = sum(read(glyph)[0] == [label] for glyph, label in zip(glyphs, labels, strict=True))
    write_results(options, own={"accuracy": right / len(labels)})


def ways(options: Any, glyphs: list[Image.Image], labels: list[int], read: Callable[[Image.Image], Read]) -> dict:
    """The share of single digits that are right, and the time to read one, for each way and seed."""
    seeds = list(range(1, options.seeds + 1))
    figures: dict[str, Any] = {"seeds": seeds, "digits": options.digits, "right": {}, "ms": {}}
    for way, draw in drawing.WAYS.items():
        for seed in seeds:
            random = np.random.default_rng(seed)
            chosen = random.choice(len(labels), options.digits, replace=False)
            found = [(read(draw(glyphs[index], random)), labels[index]) for index in chosen]
            right = np.mean([seen == [label] for (seen, _, _), label in found])
            figures["right"].setdefault(way, []).append(right)
            figures["ms"].setdefault(way, []).append(np.median([milliseconds for (_, _, milliseconds), _ in found]))
            print(f"{way}, seed {seed}: {right:.0%} right, {figures['ms'][way][-1]:.0f} ms", flush=True)
    return figures


def pages(options: Any, glyphs: list[Image.Image], labels: list[int], read: Callable[[Image.Image], Read]) -> dict:
    """The share of pages that are read or noted rightly, for each kind and seed."""
    kinds = ("several digits", "as many as there are", "empty", "cut off")
    figures: dict[str, Any] = {"seeds": list(range(1, options.seeds + 1)), "right": {kind: [] for kind in kinds}}
    for seed in figures["seeds"]:
        random = np.random.default_rng(seed)
        right = dict.fromkeys(kinds, 0)
        for _ in range(options.digits):
            chosen = random.choice(len(labels), random.integers(2, 6))
            seen, _, _ = read(drawing.row([glyphs[index] for index in chosen], random))
            right["several digits"] += seen == [labels[index] for index in chosen]
            right["as many as there are"] += len(seen) == len(chosen)
            right["empty"] += read(drawing.empty(random))[1] == ["no strokes found"]
            right["cut off"] += "touches the border" in read(drawing.cut(glyphs[chosen[0]], random))[1][0]
        for kind in kinds:
            figures["right"][kind].append(right[kind] / options.digits)
    print(figures["right"], flush=True)
    return figures


if __name__ == "__main__":
    main()
