"""A trained model that looks at picture files."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lit_models.faces.face_embedder import FaceEmbedder
from lit_models.faces.gallery import Facts, fingerprint
from lit_models.training.checkpoint import build_model, read_model
from lit_models.training.trust import Modules

if TYPE_CHECKING:
    from PIL import Image

    from datamodules.face_data.detection import Face


class Seen(NamedTuple):
    """A picture file and the faces in it.

    Attributes:
        path: The file.
        picture: It, upright, in RGB.
        faces: Where its faces are, the largest first.
        embeddings: `(faces, dim)`, of length 1.
    """

    path: Path
    picture: "Image.Image"
    faces: "list[Face]"
    embeddings: Tensor


class Recogniser:
    """A trained model, and what prepares pictures for it.

    Args:
        model: The model.
        facts: How it is done: `detect`, `detector` and `margin` count.
    """

    def __init__(self, model: FaceEmbedder, facts: Facts) -> None:
        from datamodules.face_data.detection import FaceDetector
        from datamodules.face_data.face_folder import FaceReader

        shape = (model.in_channels, model.image_size, model.image_size)
        self.model = model
        self.reader = FaceReader(shape, FaceDetector(facts.detector) if facts.detect else None, facts.margin)

    def see(self, path: Path) -> Seen:
        """The faces of a file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It can't be read.
        """
        from datamodules.common.image_io import UNREADABLE

        if not path.is_file():
            raise FileNotFoundError(f"no picture {path}")
        try:
            picture, faces, images = self.reader.find(path)
        except UNREADABLE as error:
            raise ValueError(f"cannot read {path}: {error}") from error
        with torch.inference_mode():
            return Seen(path, picture, faces, self.model(images))

    def see_all(self, paths: list[Path]) -> Iterator[Seen]:
        """The faces of files, with a progress bar; what can't be read is named in a warning, and left out."""
        console = Console(stderr=True)
        for path in track(paths, "Reading pictures", console=console, transient=True, disable=not console.is_terminal):
            try:
                yield self.see(path)
            except (FileNotFoundError, ValueError) as error:
                warnings.warn(f"{error}: left out", stacklevel=2)


def load_embedder(ckpt_path: str, modules: Modules = None) -> tuple[FaceEmbedder, dict[str, Any]]:
    """The model of a checkpoint, and the hyperparameters of the data that it was trained on."""
    checkpoint = read_model(ckpt_path)
    model = build_model(checkpoint, ckpt_path, modules=modules)
    if not isinstance(model, FaceEmbedder):
        raise ValueError(f"{ckpt_path} holds {type(model).__name__}, not a FaceEmbedder, which recognises people")
    return model, checkpoint.get("datamodule_hyper_parameters") or {}


def preparation(model: FaceEmbedder, trained: dict[str, Any], detect: bool | None, detector: str | None) -> Facts:
    """The facts of an empty gallery: how pictures are prepared, as in training where nothing else is asked for."""
    from datamodules.face_data.detection import MARGIN

    detect = trained.get("detect", True) if detect is None else detect
    if detector and not detect:
        raise ValueError("--detector looks for faces, but --detect is false: leave one of them out")
    detector = (detector or trained.get("detector")) if detect else None
    margin = trained.get("margin", MARGIN)
    return Facts(fingerprint(model), [], detect, detector, margin, far=0.01, threshold=float("inf"))
