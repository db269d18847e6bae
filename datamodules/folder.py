"""Pictures of your own: a folder with a subfolder a class, or `train/`, `val/` and `test/` of those."""

import contextlib
import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.common.base import ImageDataModule, check_fractions
from datamodules.common.pictures import PictureDataset, find_pictures, picture_endings, read_pictures, read_square
from datamodules.common.tensors import BatchDataset, random_affine, random_flip
from lit_models.common.arguments import NonNegativeFloat, NonNegativeInt, PositiveInt, Probability, check_arguments

Labelled = list[tuple[Path, int]]
PART_LIKE = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


class ImageFolderDataModule(ImageDataModule):
    """A folder of pictures: `(batch, 3 or 1, image_size, image_size)` uint8 images and int64 labels.

    `root` holds a subfolder for each class, with pictures in it and in the folders below; the classes are in the order
    of their names. Or it holds `train/`, `val/` and `test/`, each with the classes' folders: `train/` says which
    classes there are, and what is missing of the other two is split off `train/`. Splits are drawn by their own seed
    and in every class by itself; of two or more pictures of a class, one at least is split off, and one stays. They
    depend on the names alone, so that a few more pictures leave nearly all the others in their parts.

    Every format that Pillow reads will do, of any size and mode, as `datamodules.common.pictures.read_square`
    describes. Pictures are read and resized once, and kept in memory; if they need more than `memory_limit`, they are
    read once to find the damaged ones, and then in every epoch by worker processes.

    Args:
        root: The folder.
        image_size: Height and width of the images.
        mode: "rgb" for 3 channels, "grey" for 1.
        batch_size: Images a batch.
        val_fraction: Share of every class's pictures that is split off for validation; 0 splits off none.
        test_fraction: Share that is split off for the test.
        split_seed: Seed of the splits.
        flip: Augmentation: left and right exchanged at random.
        rotation: Augmentation: up to this many degrees either way. 0 is off.
        shift: Augmentation: up to this many pixels along each axis. 0 is off.
        scale: Augmentation: size changed by up to this share, 0.1 for 0.9..1.1. 0 is off.
        max_unreadable: How many damaged files are named and left out; with more of them, nothing is trained.
        memory_limit: Most memory for the images, in GiB.
        num_workers: Threads or processes that read pictures; one a processor, if not given.
        cache_on_device: Whether images and labels are kept in the device's memory, a GPU's for one: nothing is left to
            be transferred but the indices of a batch. Not for pictures that are read in every epoch.

    Raises:
        FileNotFoundError: There is no such folder, or no picture for a class.
        ValueError: There are no class folders, or they don't fit together; too many files are damaged; an option is
            out of range.
    """

    def __init__(
        self,
        root: str,
        image_size: PositiveInt = 48,
        mode: Literal["rgb", "grey"] = "rgb",
        batch_size: PositiveInt = 64,
        val_fraction: Probability = 0.1,
        test_fraction: Probability = 0.1,
        split_seed: int = 0,
        flip: bool = False,
        rotation: float = 0.0,
        shift: float = 0.0,
        scale: Probability = 0.0,
        max_unreadable: NonNegativeInt = 10,
        memory_limit: NonNegativeFloat = 2.0,
        num_workers: PositiveInt | None = None,
        cache_on_device: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(ImageFolderDataModule, locals())
        check_fractions(val_fraction, test_fraction)
        self.save_hyperparameters(logger=False)
        self.shape = (3 if mode == "rgb" else 1, image_size, image_size)
        self.read = partial(read_square, side=image_size, channels=self.shape[0])
        self.readers = num_workers or os.cpu_count() or 1

    def setup(self, stage: str) -> None:
        """Finds the pictures, and reads those that the stage needs."""
        parts = self._find()
        wanted = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",))
        if not parts[wanted[0]]:
            raise ValueError(f"{self.hparams.root} has no {wanted[0]} pictures: set data.{wanted[0]}_fraction above 0")
        if stage == "predict":  # with the names of the files, in place of labels
            self.test_set = PictureDataset([path for path, _ in parts["test"]], self.read, self.shape, self.readers)
            return
        sets = self._load([parts[name] for name in wanted])
        for name, dataset in zip(wanted, sets, strict=True):
            setattr(self, f"{name}_set", dataset)
        if stage == "fit":
            count = self.train_set.labels.bincount(minlength=self.num_classes).tolist()
            if lost := [name for name, pictures in zip(self.class_names, count, strict=True) if not pictures]:
                raise ValueError(f"none of the train pictures of {', '.join(lost)} can be read: mend or remove them")

    def augment(self, images: Tensor) -> Tensor:
        """Training images, each flipped, rotated, shifted and scaled by its own random amounts."""
        rotation, shift, scale = self.hparams.rotation, self.hparams.shift, self.hparams.scale
        images = random_flip(images) if self.hparams.flip else images
        return random_affine(images, rotation, shift, scale) if rotation or shift or scale else images

    def _find(self) -> dict[str, Labelled]:
        """The files of train, val and test, with their labels; sets the classes."""
        root = Path(self.hparams.root)
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {root}: set data.root to the folder with your pictures")
        folders = subfolders(root)
        # A class may be called "train", but hardly two of them as parts are.
        if folders == ["train"] or sum(name.lower() in PART_LIKE for name in folders) > 1:
            if wrong := [name for name in folders if name not in ("train", "val", "test")]:
                raise ValueError(f"{root} has {wrong[0]}/ among its parts, which are called train/, val/ and test/")
            if "train" not in folders:
                raise ValueError(f"{root} has no train/ beside {' and '.join(folders)}")
            places = {name: root / name for name in folders}
        else:
            places = {"train": root}
        self.class_names = subfolders(places["train"])
        self.num_classes = len(self.class_names)
        if self.num_classes < 2:
            raise ValueError(
                f"{places['train']} has {self.num_classes} subfolder(s): give each class one of its own, two at least"
            )
        endings = picture_endings()
        if loose := sum(path.suffix.lower() in endings for path in places["train"].iterdir() if path.is_file()):
            warnings.warn(f"{loose} picture(s) in {places['train']} itself belong to no class: left out", stacklevel=2)
        found = {part: self._labelled(folder) for part, folder in places.items()}
        filled = {label for _, label in found["train"]}
        if empty := [name for label, name in enumerate(self.class_names) if label not in filled]:
            raise FileNotFoundError(f"no pictures in {places['train'] / empty[0]}: fill the folder, or remove it")
        if bare := [folder for part, folder in places.items() if not found[part]]:
            raise FileNotFoundError(f"no pictures in {bare[0]}: fill the folder, or remove it to have some split off")
        return found | self._split(found["train"], [part for part in ("val", "test") if part not in found])

    def _labelled(self, folder: Path) -> Labelled:
        """The files of each class below a folder, with their labels."""
        endings, found = picture_endings(), []
        for name in subfolders(folder):
            if name not in self.class_names:
                raise ValueError(f"{folder / name}: train/ has no such class, only {', '.join(self.class_names)}")
            label = self.class_names.index(name)
            with contextlib.suppress(FileNotFoundError):  # an empty class, which only train/ must not have
                found += [(path, label) for path in find_pictures(folder / name, endings)]
        return found

    def _split(self, pictures: Labelled, parts: list[str]) -> dict[str, Labelled]:
        """Splits the parts that have no folder of their own off the training pictures."""
        labels = torch.tensor([label for _, label in pictures])
        shares = [self.hparams[f"{part}_fraction"] for part in parts]
        least = 1 + sum(share > 0 for share in shares)
        if small := [self.class_names[label] for label, n in enumerate(labels.bincount().tolist()) if n < least]:
            warnings.warn(f"too few pictures to be in every part: {', '.join(small)}", stacklevel=2)
        names = [path.relative_to(self.hparams.root).as_posix() for path, _ in pictures]
        chosen = stratified_split(labels, names, shares, self.hparams.split_seed)
        return {part: [pictures[i] for i in some] for part, some in zip(["train", *parts], chosen, strict=True)}

    def _load(self, parts: Sequence[Labelled]) -> list[Dataset]:
        """Reads pictures into memory, or, where they don't fit, finds out which of them can be read."""
        paths = [path for part in parts for path, _ in part]
        labels = torch.tensor([label for part in parts for _, label in part], dtype=torch.int64)
        fits = len(paths) * math.prod(self.shape) <= self.hparams.memory_limit * 2**30
        images = torch.empty(len(paths) if fits else 0, *self.shape, dtype=torch.uint8)
        readable = torch.ones(len(paths), dtype=torch.bool)
        errors = []
        for index, image in enumerate(read_with_progress(paths, self.read, self.readers)):
            if not isinstance(image, Tensor):
                readable[index] = False
                errors.append(f"{paths[index]} ({image})")
            elif fits:
                images[index] = image
        report_unreadable(errors, len(paths), self.hparams.max_unreadable)
        self.num_workers = 0 if fits else self.readers
        sets, start = [], 0
        for part in parts:
            end = start + len(part)
            kept = readable[start:end].nonzero().flatten() + start
            if not fits:
                chosen = PictureDataset([paths[index] for index in kept], self.read, self.shape, threads=1)
                sets.append(LabelledPictures(chosen, labels[kept]))
            elif len(kept) == len(part):  # without a copy
                sets.append(BatchDataset(images[start:end], labels[start:end]))
            else:
                sets.append(BatchDataset(images[kept], labels[kept]))
            start = end
        return sets


class LabelledPictures(Dataset[tuple[Tensor, Tensor]]):
    """Picture files that are read in every epoch, with their labels.

    Args:
        pictures: The files, all of them readable.
        labels: `(count,)`, int64.
    """

    def __init__(self, pictures: PictureDataset, labels: Tensor) -> None:
        self.pictures = pictures
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Images `(batch, channels, height, width)`, uint8, and their labels."""
        images, names = self.pictures.__getitems__(indices)
        if len(names) < len(indices):
            raise OSError("pictures that could be read before cannot be read any more")
        return images, self.labels[indices]


def read_with_progress(
    paths: Sequence[Path], read: Callable[[Path], Tensor], threads: int
) -> Iterable[Tensor | Exception]:
    """Reads files in several threads, with a progress bar; a file that can't be read gives its error."""
    console = Console(stderr=True)
    return track(
        read_pictures(paths, read, threads),
        "Reading pictures",
        total=len(paths),
        console=console,
        transient=True,
        disable=rank_zero_only.rank != 0 or not console.is_terminal,
    )


def report_unreadable(errors: list[str], count: int, limit: int) -> None:
    """Names the files that can't be read, out of so many, and raises a ValueError where they are more than a limit."""
    if not errors:
        return
    named = ", ".join(errors[: max(limit, 10)]) + (", ..." if len(errors) > max(limit, 10) else "")
    if len(errors) > limit or len(errors) == count:
        raise ValueError(
            f"{len(errors)} of {count} pictures cannot be read, and data.max_unreadable is {limit}: {named}"
        )
    warnings.warn(f"{len(errors)} of {count} pictures cannot be read and are left out: {named}", stacklevel=2)


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, in order; hidden ones are passed over."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def split_key(seed: int, name: str) -> bytes:
    """What things are sorted by to be split at random: a hash of a name and the seed, of the others independent."""
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()


def stratified_split(labels: Tensor, names: Sequence[str], shares: Sequence[float], seed: int) -> list[list[int]]:
    """Splits pictures so that every part has the same share of every class.

    The order in which a class is split is that of a hash of each name and the seed: a picture that is added or removed
    moves at most one other picture a part, and none of another class.

    Args:
        labels: `(count,)`, a label a picture.
        names: The pictures' names.
        shares: A share, above 0, brings a part at least one picture of each class that has enough; 0 brings none.
        seed: Seed of the split.

    Returns:
        The indices that stay, at least one a class, and those of the part for each share, all in order.
    """
    parts: list[list[int]] = [[] for _ in range(1 + len(shares))]
    keys = [split_key(seed, name) for name in names]
    for label in labels.unique():
        own = sorted((labels == label).nonzero().flatten().tolist(), key=keys.__getitem__)
        left = count = len(own)
        for part, share in zip(parts[1:], shares, strict=True):
            size = min(max(1, round(count * share)) if share else 0, left - 1)
            part += own[left - size : left]
            left -= size
        parts[0] += own[:left]
    return [sorted(part) for part in parts]
