"""Face recognition on the ORL faces: people known and unknown, beside older methods, and the speed of `identify`.

*By picture*: of every person 5 pictures train, drawn at random, and the other 5 are identified. *By person*: 20 of the
40 people train; all pairs of the others' 200 pictures are verified. Eigenfaces (Turk and Pentland, 1991) take the
nearest training picture among principal components, or, by person, their cosine; the linear SVM sees pixels.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Timer
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC
from torch import Tensor

from benchmarks.common import median, prepare, spread, test, train
from lit_models.cli.recognition import FaceRecognizer, empty_metadata, load_embedder
from lit_models.faces.gallery import Gallery
from lit_models.faces.verification import pair_similarities, roc
from lit_models.training.figures import draw_boxes

COMPONENTS = 50


def main() -> None:
    """Runs, and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.face", description=__doc__.partition("\n")[0])
    parser.add_argument("--root", default="../shared/data/orl_faces", help="the folder of the ORL faces")
    parser.add_argument("--by_picture", type=int, default=10, help="splits by picture (default: 10)")
    parser.add_argument("--by_person", type=int, default=5, help="splits by person (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default: 2)")
    parser.add_argument("--precision", default="32-true", help="of the Trainer (default: 32-true)")
    options = parser.parse_args()
    prepare(options.threads)
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = [f"--data.root={options.root}", f"--trainer.precision={options.precision}"]
        by_person = ["--data.split_by=person", "--data.val_fraction=0", "--data.test_fraction=0.5"]
        for by, splits, more, older in (
            ("picture", options.by_picture, ["--data.split_by=image", "--data.train_images=5"], identification),
            ("person", options.by_person, by_person, verification),
        ):
            results: dict[str, list[float]] = {}
            for seed in range(splits):
                timer = Timer()
                command = train("face_orl.yaml", seed, folder, [timer], *flags, *more, f"--data.split_seed={seed}")
                metrics = test(command)
                seconds = timer.time_elapsed("train")
                found = older(command.datamodule.train_set, command.datamodule.test_set)
                if by == "picture":
                    found["FaceEmbedder: identification error"] = 100 * (1 - metrics["test/rank_1"])
                else:
                    found["FaceEmbedder: EER"] = 100 * metrics["test/eer"]
                    found["FaceEmbedder: TAR at FAR 1%"] = 100 * metrics["test/tar_at_far_1e-2"]
                found["seconds of training"] = seconds
                for key, value in found.items():
                    results.setdefault(key, []).append(value)
                print(f"by {by}, split {seed}: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()), flush=True)
            lines += [f"by {by:<9}{key:<42}{spread(values, 2)}" for key, values in results.items()]
        checkpoint = str(max(folder.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime))
        lines += speed(checkpoint, Path(options.root), folder)
    print("\n".join(["", *lines]))


def pixels(images: Tensor) -> np.ndarray:
    """Images as rows of numbers, each with mean 0 and standard deviation 1, as the network sees them."""
    rows = images.flatten(1).double()
    return ((rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)).numpy()


def identification(train_set: torch.utils.data.Dataset, test_set: torch.utils.data.Dataset) -> dict[str, float]:
    """The identification errors of older methods, in %."""
    probes = ~test_set.tensors[3]  # those that are not enrolled
    known, asked = pixels(train_set.images), pixels(test_set.images[probes])
    truth = test_set.labels[probes].numpy()
    components = PCA(COMPONENTS, random_state=0).fit(known)
    methods = {
        "eigenfaces: identification error": (components.transform, KNeighborsClassifier(1)),
        "linear SVM: identification error": (lambda rows: rows, LinearSVC()),
    }
    errors = {}
    for name, (features, method) in methods.items():
        method.fit(features(known), train_set.labels.numpy())
        errors[name] = 100 * float((method.predict(features(asked)) != truth).mean())
    return errors


def verification(train_set: torch.utils.data.Dataset, test_set: torch.utils.data.Dataset) -> dict[str, float]:
    """The verification figures of eigenfaces, in %."""
    components = PCA(COMPONENTS, random_state=0).fit(pixels(train_set.images))
    embeddings = F.normalize(torch.from_numpy(components.transform(pixels(test_set.images))))
    curve = roc(*pair_similarities(embeddings, test_set.labels))
    return {"eigenfaces: EER": 100 * curve.equal_error_rate(), "eigenfaces: TAR at FAR 1%": 100 * curve.tar_at(0.01)}


def speed(checkpoint: str, root: Path, folder: Path) -> list[str]:
    """How long it takes to identify the one face of a photograph of a megapixel, on one thread, after start-up."""
    torch.set_num_threads(1)
    model, trained = load_embedder(checkpoint)
    metadata = empty_metadata(model, trained, detect=True, detector=None)
    recognizer = FaceRecognizer(model, metadata)
    noise = np.random.default_rng(0).normal(120, 12, (800, 1250, 3)).clip(0, 255).astype(np.uint8)
    photograph = Image.fromarray(noise)
    photograph.paste(Image.open(next(root.glob("s1/1.pgm"))).convert("RGB").resize((276, 336)), (500, 200))
    photograph.save(folder / "photograph.jpg", quality=90)
    lines = []
    for people in (10, 10_000):
        metadata.names[:] = [f"person {number}" for number in range(people)]
        metadata.threshold = -1.0
        embeddings = F.normalize(torch.randn(people, model.hparams.embedding_dim))
        known = Gallery(metadata, embeddings, torch.arange(people))
        _, faces, face_embeddings = recognizer.embed_faces(folder / "photograph.jpg")

        def identify(known: Gallery = known) -> None:
            picture, faces, embeddings = recognizer.embed_faces(folder / "photograph.jpg")
            captions = [name for name, _ in known.identify(embeddings)]
            draw_boxes(picture, [face.box for face in faces], captions).save(folder / "copy.jpg", quality=90)

        identify()
        lines.append(f"identify, {people} people: {len(faces)} face, ms, median {median(timed(identify), 0)}")
        matching = timed(lambda known=known, embeddings=face_embeddings: known.identify(embeddings))
        lines.append(f"of it, to compare it with them: ms, median {median(matching, 2)}")
    return lines


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
