"""Who is known: the embeddings of people's pictures with their names, in a file that holds no code."""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_models.faces.face_embedder import FaceEmbedder
from lit_models.faces.verification import threshold_at

FORMAT = "1"
ROWS = 1_000  # pictures that are compared with all others at a time
KINDS = {"model": str, "names": list, "detect": bool, "detector": str | None}
KINDS |= {"margin": int | float, "far": int | float | None, "threshold": int | float}


@dataclass
class Facts:
    """What a gallery says of itself.

    Attributes:
        model: The fingerprint of the model that made it.
        names: The people by number.
        detect: Whether faces were looked for in the pictures.
        detector: The file of the YuNet that did, if any.
        margin: Share of a face's side that was added on every side.
        far: The false-accept rate that the threshold is for; None if it was given.
        threshold: The similarity from which on a face is taken to be somebody of the gallery.
    """

    model: str
    names: list[str]
    detect: bool
    detector: str | None
    margin: float
    far: float | None
    threshold: float

    def __post_init__(self) -> None:
        for key, kind in KINDS.items():
            value = getattr(self, key)
            if not isinstance(value, kind) or (kind is list and not all(isinstance(name, str) for name in value)):
                raise ValueError(f"{key} is {value!r}, which it cannot be")


class Gallery:
    """The embeddings of people's pictures; a person is as similar as the most similar one of them.

    Args:
        facts: What it says of itself.
        embeddings: `(pictures, dim)`, float32 and of length 1.
        people: `(pictures,)`, int64: who is in a picture, a number into the names.
    """

    def __init__(self, facts: Facts, embeddings: Tensor, people: Tensor) -> None:
        self.facts, self.embeddings, self.people = facts, embeddings, people

    def put(self, name: str, embeddings: Tensor) -> bool:
        """Enrols a person by embeddings `(pictures, dim)`, in place of earlier ones; says whether there were any."""
        known = name in self.facts.names
        if known:
            self.remove(name)
        self.people = torch.cat([self.people, torch.full((len(embeddings),), len(self.facts.names))])
        self.embeddings = torch.cat([self.embeddings, embeddings])
        self.facts.names.append(name)
        return known

    def remove(self, name: str) -> None:
        """Takes a person out, who is in it."""
        number = self.facts.names.index(name)
        kept = self.people != number
        self.embeddings, people = self.embeddings[kept], self.people[kept]
        self.people = people - (people > number).long()
        self.facts.names.remove(name)

    def nearest(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """The number of the most similar person for each of `(faces, dim)`, and how similar, each `(faces,)`."""
        values, pictures = (embeddings @ self.embeddings.T).max(dim=1)
        return self.people[pictures], values

    def strangers(self) -> Tensor:
        """How similar every picture is to the most similar other person, `(pictures,)`; two people are needed."""
        found = []
        for rows, people in zip(self.embeddings.split(ROWS), self.people.split(ROWS), strict=True):
            own = people[:, None] == self.people
            found.append((rows @ self.embeddings.T).masked_fill(own, -1.0).amax(dim=1))
        return torch.cat(found)

    def choose_threshold(self, far: float) -> None:
        """The threshold with which the share `far` of strangers' faces is taken for somebody, every picture as one."""
        self.facts.far, self.facts.threshold = far, threshold_at(self.strangers(), far)

    def save(self, path: Path) -> None:
        """Writes the file, beside its place first.

        Raises:
            OSError: It can't be written.
            ValueError: safetensors is missing.
        """
        save_file = import_safetensors().torch.save_file
        tensors = {"embeddings": self.embeddings.contiguous(), "people": self.people.contiguous()}
        facts = json.dumps(asdict(self.facts))
        partial = path.with_name(f"{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
            save_file(tensors, partial, {"gallery": FORMAT, "facts": facts, "sha256": seal(facts, tensors)})
            partial.replace(path)
        except OSError as error:
            raise OSError(f"cannot write {path} ({error.strerror}): give another --gallery") from error
        finally:
            with contextlib.suppress(OSError):  # above it is a file, for one
                partial.unlink()


def read_gallery(path: Path, model: FaceEmbedder) -> Gallery:
    """Reads a gallery that this model has made.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no gallery, damaged or edited, or another model's; safetensors is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no gallery {path}: make one with python -m lit_models enrol")
    package = import_safetensors()
    try:
        with package.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (package.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a gallery, or is cut short") from error
    if metadata.get("gallery") != FORMAT:
        raise ValueError(f"{path} is not a gallery, or one of another version of this package: enrol again")
    try:
        if metadata["sha256"] != seal(metadata["facts"], tensors):
            raise ValueError("it is not what was written")
        facts, embeddings, people = Facts(**json.loads(metadata["facts"])), tensors["embeddings"], tensors["people"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or was edited: enrol again") from error
    if facts.model != fingerprint(model):
        raise ValueError(f"{path} was made with another checkpoint: give that one, or enrol again into another gallery")
    whole = people.ndim == 1 and embeddings.shape == (len(people), model.hparams.embedding_dim)
    whole = whole and (embeddings.dtype, people.dtype) == (torch.float32, torch.int64)
    if not whole or not torch.isin(people, torch.arange(len(facts.names))).all():
        raise ValueError(f"{path} is damaged, or was edited: enrol again")
    return Gallery(facts, embeddings, people)


def seal(facts: str, tensors: dict[str, Tensor]) -> str:
    """A SHA-256 over all that a gallery holds."""
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def fingerprint(model: FaceEmbedder) -> str:
    """A SHA-256 over what a model's embeddings depend on; the head is not a part of that."""
    digest = hashlib.sha256(json.dumps([model.in_channels, model.image_size, model.hparams.flip_average]).encode())
    model.discriminants.refresh()
    for name, value in [*sorted(model.network.state_dict().items()), ("projection", model.discriminants.projection)]:
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def import_safetensors() -> Any:
    """The package, or a ValueError that says how to get it."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ValueError("galleries need the extra faces: pip install -e '.[faces]' (no safetensors here)") from error
    return safetensors
