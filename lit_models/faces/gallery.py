"""Galleries: the embeddings of people to identify, with their names, in a safetensors file."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from lit_models.common.files import atomic_write
from lit_models.common.messages import require_extra
from lit_models.faces.face_embedder import FaceEmbedder
from lit_models.faces.verification import stranger_similarities, threshold_at

FORMAT = "1"
UNKNOWN = "unknown"  # the name of everybody else


@dataclass
class GalleryMetadata:
    """What a gallery records besides embeddings."""

    model: str  # fingerprint of the model that computed them
    names: list  # of the people, by label
    detect: bool  # whether faces are detected in the pictures
    detector: str | None  # file of the YuNet detector, if it is used
    margin: int | float  # added on each side of a face, as a fraction of its side
    far: int | float | None  # false-accept rate that the threshold was chosen for; None if the threshold was given
    threshold: int | float  # lowest similarity at which a face is identified as a person of the gallery

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, field.type):
                raise ValueError(f"{field.name} has a value of another type: {value!r}")
        if not all(isinstance(name, str) for name in self.names):
            raise ValueError("names are not all of type str")


@dataclass(eq=False)
class Gallery:
    """Embeddings of people; the similarity to a person is that to the most similar of their embeddings."""

    metadata: GalleryMetadata
    embeddings: Tensor  # (pictures, dim), float32, of length 1
    labels: Tensor  # (pictures,), int64, indices into the names

    def add(self, name: str, embeddings: Tensor) -> int:
        """Enrols a person by embeddings `(pictures, dim)`, beside earlier ones; returns how many were not there yet."""
        if name not in self.metadata.names:
            self.metadata.names.append(name)
        label = self.metadata.names.index(name)
        known = self.embeddings[self.labels == label]
        same = same_picture(embeddings, torch.cat([known, embeddings]))
        new = embeddings[~same.tril(len(known) - 1).any(dim=1)]  # like none before it
        self.labels = torch.cat([self.labels, torch.full((len(new),), label)])
        self.embeddings = torch.cat([self.embeddings, new])
        return len(new)

    def count(self, name: str) -> int:
        """The number of a person's pictures, 0 if they are not enrolled."""
        names = self.metadata.names
        return int((self.labels == names.index(name)).sum()) if name in names else 0

    def sharing(self, name: str) -> list[str]:
        """The other people who have a picture of this person's."""
        own = self.labels == self.metadata.names.index(name)
        shared = same_picture(self.embeddings[~own], self.embeddings[own]).any(dim=1)
        return [self.metadata.names[label] for label in self.labels[~own][shared].unique()]

    def remove(self, name: str) -> None:
        """Removes an enrolled person."""
        label = self.metadata.names.index(name)
        kept = self.labels != label
        self.embeddings, labels = self.embeddings[kept], self.labels[kept]
        self.labels = labels - (labels > label).long()
        self.metadata.names.remove(name)

    def nearest(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Label of the most similar person for each of `(faces, dim)`, and the similarity, each `(faces,)`."""
        values, pictures = (embeddings @ self.embeddings.T).max(dim=1)
        return self.labels[pictures], values

    def identify(self, embeddings: Tensor) -> list[tuple[str, float]]:
        """Name of the most similar person, or "unknown", and the similarity to them, for each of `(faces, dim)`."""
        labels, values = self.nearest(embeddings)
        names, threshold = self.metadata.names, self.metadata.threshold
        found = zip(labels.tolist(), values.tolist(), strict=True)
        return [(names[label] if value >= threshold else UNKNOWN, value) for label, value in found]

    def choose_threshold(self, far: float) -> None:
        """Chooses the threshold for a false-accept rate, with every picture as a stranger's to all other people."""
        similarities = stranger_similarities(self.embeddings, self.labels)
        self.metadata.far, self.metadata.threshold = far, threshold_at(similarities, far)

    def save(self, path: Path) -> None:
        """Writes the file."""
        require_safetensors()
        from safetensors.torch import save_file

        tensors = {"embeddings": self.embeddings.contiguous(), "labels": self.labels.contiguous()}
        metadata = json.dumps(asdict(self.metadata))
        header = {"gallery": FORMAT, "metadata": metadata, "sha256": checksum(metadata, tensors)}
        with atomic_write(path, "give another --gallery") as partial:
            partial.touch()  # raises an OSError, which safetensors doesn't
            save_file(tensors, partial, header)


def same_picture(embeddings: Tensor, others: Tensor) -> Tensor:
    """Which embeddings, `(pictures, dim)` and `(others, dim)`, are of one and the same picture: bool, all with all."""
    return embeddings @ others.T > 1 - 1e-6


def read_gallery(path: Path, model: FaceEmbedder) -> Gallery:
    """Reads a gallery of this model, and refuses one that is damaged, edited, or of another model."""
    if not path.is_file():
        raise FileNotFoundError(f"no gallery {path}: make one with python -m lit_models enrol")
    require_safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header, names = file.metadata() or {}, file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a gallery, or is cut short") from error
    if header.get("gallery") != FORMAT:
        raise ValueError(f"{path} is not a gallery, or one of another version of this package: enrol again")
    try:
        if header["sha256"] != checksum(header["metadata"], tensors):
            raise ValueError("it is not what was written")
        gallery = Gallery(GalleryMetadata(**json.loads(header["metadata"])), tensors["embeddings"], tensors["labels"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or was edited: enrol again") from error
    if gallery.metadata.model != fingerprint(model):
        raise ValueError(f"{path} was made with another checkpoint: give that one, or enrol again into another gallery")
    embeddings, labels = gallery.embeddings, gallery.labels
    valid = labels.ndim == 1 and embeddings.shape == (len(labels), model.hparams.embedding_dim)
    valid = valid and (embeddings.dtype, labels.dtype) == (torch.float32, torch.int64)
    if not valid or not torch.isin(labels, torch.arange(len(gallery.metadata.names))).all():
        raise ValueError(f"{path} is damaged, or was edited: enrol again")
    return gallery


def checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a text, and of tensors with their names; safetensors itself has none."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def fingerprint(model: FaceEmbedder) -> str:
    """Checksum of all that a model's embeddings depend on, which the head does not belong to."""
    model.lda.refresh()
    settings = json.dumps([model.in_channels, model.image_size, model.hparams.flip_average])
    return checksum(settings, model.network.state_dict() | {"projection": model.lda.projection})


def require_safetensors() -> None:
    """Raises a ValueError where safetensors is not installed."""
    require_extra("faces", "a gallery", "safetensors")
