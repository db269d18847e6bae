"""Face recognition on the ORL faces, beside older methods, the speed of `identify`, and which faces are detected.

*By picture*: of every person 5 pictures train, drawn at random, and the other 5 are identified. *By person*: 20 of the
40 people train; all pairs of the others' 200 pictures are verified. Eigenfaces (Turk and Pentland, 1991) take the
nearest training picture among principal components, or, by person, their cosine; the linear SVM sees pixels.
*Detection*: the share of the portraits whose face is found where they lie, scaled or tilted, in a gray picture.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Timer
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC
from torch import Tensor

from benchmarks.common import options_parser, parameters, parse, test, train, write_results
from datamodules.common.image_io import find_images, open_image
from datamodules.common.tensors import BatchDataset
from datamodules.face_data.detection import MARGIN, Face, FaceDetector
from lit_models.cli.recognition import FaceRecognizer, empty_metadata, load_embedder
from lit_models.faces.gallery import Gallery
from lit_models.faces.verification import pair_similarities, roc
from lit_models.training.figures import draw_boxes

COMPONENTS = 50
FACE_WIDTH = 92 / (1 + 2 * MARGIN)  # of the box around the face in the middle of a portrait of 92x112 pixels
PICTURE = (640, 480)  # larger ones are scaled down to it before faces are looked for
WIDTHS, TILTED_WIDTH = (20, 24, 26, 28, 30, 32, 40, 60, 100, 200, 360), 120  # pixels
TILTS = (-45, -30, -25, -20, -15, -10, -5, 0, 5, 10, 15, 20, 25, 30, 45)  # degrees
Errors = dict[str, dict[str, float]]  # by figure and method


def main() -> None:
    """Runs, and writes benchmarks/results/face.json."""
    parser = options_parser("face", __doc__, threads=2)
    parser.add_argument("--root", default="../shared/data/orl_faces", help="the folder of the ORL faces")
    parser.add_argument("--by_picture", type=int, default=10, help="splits by picture (default: 10)")
    parser.add_argument("--by_person", type=int, default=5, help="splits by person (default: 5)")
    parser.add_argument("--precision", default="32-true", help="of the Trainer (default: 32-true)")
    parser.add_argument("--only", choices=("recognition", "detection"), help="one part, instead of both")
    options = parse(parser, "scikit-learn", "opencv-python-headless")
    if options.only in (None, "detection"):
        write_results(options, detection=detection(Path(options.root)))
    if options.only in (None, "recognition"):
        recognition(options)


def recognition(options: argparse.Namespace) -> None:
    """Trains, and writes the figures of people known and unknown, and the speed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = [f"--data.root={options.root}", f"--trainer.precision={options.precision}"]
        image = ["--data.split_by=image", "--data.train_images=5"]
        write_results(options, by_picture=splits(options.by_picture, folder, identification, *flags, *image))
        person = ["--data.split_by=person", "--data.val_fraction=0", "--data.test_fraction=0.5"]
        write_results(options, by_person=splits(options.by_person, folder, verification, *flags, *person))
        checkpoint = str(max(folder.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime))
        options.measured["threads"] = 1  # see `speed`
        write_results(options, identify=speed(checkpoint, Path(options.root), folder))


def splits(count: int, folder: Path, errors: Callable[..., Errors], *flags: str) -> dict[str, Any]:
    """Figures of FaceEmbedder and of older methods over random splits, which the seeds draw."""
    figures: dict[str, Any] = {"seeds": list(range(count)), "seconds": []}
    for seed in range(count):
        timer = Timer()
        command = train("face_orl.yaml", seed, folder, [timer], *flags, f"--data.split_seed={seed}")
        figures["parameters"] = parameters(command.model.network)
        figures["seconds"].append(timer.time_elapsed("train"))
        for name, found in errors(test(command), command.datamodule.train_set, command.datamodule.test_set).items():
            for method, value in found.items():
                figures.setdefault(name, {}).setdefault(method, []).append(value)
            said = ", ".join(f"{method} {value:.2%}" for method, value in found.items())
            print(f"split {seed}: {name}: {said}", flush=True)
    return figures


def pixels(images: Tensor) -> np.ndarray:
    """Images as rows of numbers, each with mean 0 and standard deviation 1, as the network sees them."""
    rows = images.flatten(1).double()
    return ((rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)).numpy()


def identification(metrics: dict[str, float], train_set: BatchDataset, test_set: BatchDataset) -> Errors:
    """The identification errors."""
    probes = ~test_set.tensors[3]  # those that are not enrolled
    known, asked = pixels(train_set.images), pixels(test_set.images[probes])
    truth = test_set.labels[probes].numpy()
    components = PCA(COMPONENTS, random_state=0).fit(known)
    methods = {
        "eigenfaces": (components.transform, KNeighborsClassifier(1)),
        "linear_svm": (lambda rows: rows, LinearSVC()),
    }
    errors = {"face_embedder": 1 - metrics["test/rank_1"]}
    for name, (features, method) in methods.items():
        method.fit(features(known), train_set.labels.numpy())
        errors[name] = float((method.predict(features(asked)) != truth).mean())
    return {"identification_error": errors}


def verification(metrics: dict[str, float], train_set: BatchDataset, test_set: BatchDataset) -> Errors:
    """The equal error rates, and the shares of true acceptances at 1% of false ones."""
    components = PCA(COMPONENTS, random_state=0).fit(pixels(train_set.images))
    embeddings = F.normalize(torch.from_numpy(components.transform(pixels(test_set.images))))
    curve = roc(*pair_similarities(embeddings, test_set.labels))
    return {
        "eer": {"face_embedder": metrics["test/eer"], "eigenfaces": curve.equal_error_rate()},
        "tar_at_far_1e-2": {"face_embedder": metrics["test/tar_at_far_1e-2"], "eigenfaces": curve.tar_at(0.01)},
    }


def speed(checkpoint: str, root: Path, folder: Path) -> dict[str, Any]:
    """How long it takes to identify the one face of a photograph of a megapixel, on one thread, after start-up."""
    torch.set_num_threads(1)
    model, trained = load_embedder(checkpoint)
    metadata = empty_metadata(model, trained, detect=True, detector=None)
    recognizer = FaceRecognizer(model, metadata)
    noise = np.random.default_rng(0).normal(120, 12, (800, 1250, 3)).clip(0, 255).astype(np.uint8)
    photograph = Image.fromarray(noise)
    photograph.paste(Image.open(next(root.glob("s1/1.pgm"))).convert("RGB").resize((276, 336)), (500, 200))
    photograph.save(folder / "photograph.jpg", quality=90)
    figures: dict[str, Any] = {}
    for people in (10, 10_000):
        metadata.names[:] = [f"person {number}" for number in range(people)]
        metadata.threshold = -1.0
        embeddings = F.normalize(torch.randn(people, model.hparams.embedding_dim))
        known = Gallery(metadata, embeddings, torch.arange(people))
        faces, face_embeddings = recognizer.embed(open_image(folder / "photograph.jpg", 3))

        def identify(known: Gallery = known) -> None:
            picture = open_image(folder / "photograph.jpg", 3)
            faces, embeddings = recognizer.embed(picture)
            captions = [name for name, _ in known.identify(embeddings)]
            draw_boxes(picture, [face.box for face in faces], captions).save(folder / "copy.jpg", quality=90)

        identify()
        figures[f"{people}_people"] = {
            "faces": len(faces),
            "milliseconds": timed(identify),
            "milliseconds_comparing": timed(lambda known=known, embeddings=face_embeddings: known.identify(embeddings)),
        }
    return figures


def detection(root: Path) -> dict[str, Any]:
    """The share of ORL's portraits whose face is found, by its width and by its tilt."""
    detector, paths = FaceDetector(), find_images(root, {".pgm"})[::2]  # five of each person
    figures: dict[str, Any] = {"portraits": len(paths), "picture": PICTURE, "tilted_width": TILTED_WIDTH}
    for name, places in {
        "by_width": [(width, 0) for width in WIDTHS],
        "by_tilt": [(TILTED_WIDTH, tilt) for tilt in TILTS],
    }.items():
        for width, tilt in places:
            found = [found_face(detector, path, width, tilt) for path in paths]
            key = str(tilt if name == "by_tilt" else width)
            figures.setdefault(name, {})[key] = sum(map(bool, found)) / len(paths)
            figures.setdefault(f"eyes_{name}", {})[key] = sum(bool(face and face.eyes) for face in found) / len(paths)
            print(f"{name} {key}: {figures[name][key]:.1%}, eyes {figures[f'eyes_{name}'][key]:.1%}", flush=True)
    return figures


def found_face(detector: FaceDetector, portrait: Path, width: int, tilt: int) -> Face | None:
    """What the detector finds of a portrait in a gray picture, its face so wide in pixels, and tilted by degrees."""
    picture = Image.new("L", PICTURE, 128)
    with Image.open(portrait) as file:
        size = [round(length * width / FACE_WIDTH) for length in file.size]
        scaled = file.convert("L").resize(size, Image.Resampling.LANCZOS)
    mask = Image.new("L", scaled.size, 255).rotate(tilt, Image.Resampling.BICUBIC, expand=True)
    scaled = scaled.rotate(tilt, Image.Resampling.BICUBIC, expand=True)
    picture.paste(scaled, [(length - own) // 2 for length, own in zip(PICTURE, scaled.size, strict=True)], mask)
    for face in detector(picture):
        left, top, side, _ = face.box
        distance = math.dist((left + side / 2, top + side / 2), (PICTURE[0] / 2, PICTURE[1] / 2))
        if distance < width / 4 and 0.6 < side / width < 1.6:
            return face
    return None


def timed(action: Callable[[], object], times: int = 9) -> list[float]:
    """Milliseconds of each of some calls."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        taken.append(1000 * (time.perf_counter() - start))
    return taken


if __name__ == "__main__":
    main()
