"""Detection and embedding of the faces in picture files."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from lit_models.faces.face_embedder import FaceEmbedder
from lit_models.faces.gallery import GalleryMetadata, fingerprint
from lit_models.training.checkpoint import build_model, read_model
from lit_models.training.trust import Modules

if TYPE_CHECKING:
    from PIL import Image

    from datamodules.face_data.detection import Face


class Detections(NamedTuple):
    """The faces in a picture file.

    Attributes:
        path: The file.
        picture: The picture, upright, in RGB.
        faces: Boxes and eyes of the faces, the largest first.
        embeddings: `(faces, dim)`, of length 1.
    """

    path: Path
    picture: "Image.Image"
    faces: "list[Face]"
    embeddings: Tensor


class FaceRecognizer:
    """A trained model with the preprocessing of its pictures.

    Args:
        model: The model.
        metadata: The gallery's, of which `detect`, `detector` and `margin` are used.
    """

    def __init__(self, model: FaceEmbedder, metadata: GalleryMetadata) -> None:
        from datamodules.face_data.detection import FaceDetector
        from datamodules.face_data.face_folder import FaceReader

        shape = (model.in_channels, model.image_size, model.image_size)
        detector = FaceDetector(metadata.detector) if metadata.detect else None
        self.model, self.reader = model, FaceReader(shape, detector, metadata.margin)

    def embed_faces(self, path: Path) -> Detections:
        """Detects and embeds the faces in a picture file.

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
            return Detections(path, picture, faces, self.model(images))

    def embed_all(self, paths: list[Path]) -> Iterator[Detections]:
        """The same of several files, with a progress bar; a warning names those that can't be read."""
        console = Console(stderr=True)
        for path in track(paths, "Reading pictures", console=console, transient=True, disable=not console.is_terminal):
            try:
                yield self.embed_faces(path)
            except (FileNotFoundError, ValueError) as error:
                warnings.warn(f"{error}: left out", stacklevel=2)


def load_embedder(ckpt_path: str, modules: Modules = None) -> tuple[FaceEmbedder, dict[str, Any]]:
    """The model of a checkpoint, and the hyperparameters of its training data.

    Raises:
        ValueError: It is a checkpoint of another model.
    """
    checkpoint = read_model(ckpt_path)
    model = build_model(checkpoint, ckpt_path, modules=modules)
    if not isinstance(model, FaceEmbedder):
        raise ValueError(f"{ckpt_path} holds {type(model).__name__}, not a FaceEmbedder, which recognises people")
    return model, checkpoint.get("datamodule_hyper_parameters") or {}


def empty_metadata(
    model: FaceEmbedder, trained: dict[str, Any], detect: bool | None, detector: str | None
) -> GalleryMetadata:
    """Metadata of an empty gallery, with the preprocessing of training unless another is given.

    Args:
        model: The model.
        trained: Hyperparameters of its training data.
        detect: Whether faces are detected in the pictures.
        detector: File of the YuNet detector.
    """
    from datamodules.face_data.detection import MARGIN

    detect = trained.get("detect", True) if detect is None else detect
    if detector and not detect:
        raise ValueError("--detector looks for faces, but --detect is false: leave one of them out")
    detector = (detector or trained.get("detector")) if detect else None
    margin = trained.get("margin", MARGIN)
    return GalleryMetadata(fingerprint(model), [], detect, detector, margin, far=0.01, threshold=float("inf"))
