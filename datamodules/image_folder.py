"""Your own images: a folder with one subfolder per class, or with `train/`, `val/` and `test/` of those."""

import contextlib
import math
import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

from datamodules.common.base import ImageDataModule, check_fractions
from datamodules.common.image_io import (
    ImageFileDataset,
    find_images,
    image_extensions,
    read_image,
    read_readable,
    subfolders,
)
from datamodules.common.splits import stratified_split
from datamodules.common.tensors import BatchDataset, random_affine, random_flip
from lit_models.common.arguments import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt, check_arguments

LabeledFiles = list[tuple[Path, int]]
PART_LIKE = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


class ImageFolderDataModule(ImageDataModule):
    """A folder of images: `(batch, 3 or 1, image_size, image_size)` uint8 images and int64 labels.

    `root` holds one subfolder per class, whose images may lie in further subfolders; classes are in alphabetical order.
    Or it holds `train/`, `val/` and `test/`, each with the class folders: `train/` defines the classes, and `val/` and
    `test/` are split off `train/` where they are missing. Splits are stratified, with at least one image of each class
    in every part where there are enough. They depend on `split_seed` and the file names alone, so that added images
    leave nearly all others in their parts.

    Every format that Pillow reads will do, of any size and mode: see `datamodules.common.image_io.open_image`. Images
    are read and resized once, and kept in memory; if they need more than `memory_limit`, they are read once to find the
    damaged ones, and then in every epoch by worker processes.

    Args:
        root: The folder.
        image_size: Height and width of the images.
        grayscale: Read images with 1 channel instead of 3.
        batch_size: Batch size per process.
        val_fraction: Fraction of every class for validation; 0 is none.
        test_fraction: Fraction of every class for the test; 0 is none.
        split_seed: Seed of the splits.
        flip: Augmentation: random horizontal flip.
        rotation: Augmentation: random rotation of up to this many degrees; 0 is off.
        shift: Augmentation: random shift of up to this many pixels along each axis; 0 is off.
        scale: Augmentation: random scaling by a factor of 1 - scale..1 + scale; 0 is off.
        max_unreadable: Most damaged files that are skipped with a warning; more of them are an error.
        memory_limit: Most memory for the images, in GiB.
        num_workers: Number of threads or processes that read images. One per processor, if not given.
        cache_on_device: Keep images and labels in the device's memory, and transfer only the indices of a batch. Not
            for images that are read in every epoch.

    Raises:
        FileNotFoundError: There is no such folder, or no image of a class.
        ValueError: There are no class folders, or they don't fit together; too many files are damaged; an argument is
            out of range.
    """

    resume_may_change = frozenset({"root", "memory_limit", "num_workers", "cache_on_device"})

    def __init__(
        self,
        root: str,
        image_size: PositiveInt = 48,
        grayscale: bool = False,
        batch_size: PositiveInt = 64,
        val_fraction: Fraction = 0.1,
        test_fraction: Fraction = 0.1,
        split_seed: int = 0,
        flip: bool = False,
        rotation: float = 0.0,
        shift: float = 0.0,
        scale: Fraction = 0.0,
        max_unreadable: NonNegativeInt = 10,
        memory_limit: NonNegativeFloat = 2.0,
        num_workers: PositiveInt | None = None,
        cache_on_device: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(ImageFolderDataModule, locals())
        check_fractions(val_fraction, test_fraction)
        self.save_hyperparameters(logger=False)
        self.shape = (1 if grayscale else 3, image_size, image_size)
        self.read = partial(read_image, side=image_size, channels=self.shape[0])
        self.num_readers = num_workers or os.cpu_count() or 1

    @override
    def setup(self, stage: str) -> None:
        parts = self._find()
        needed = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",))
        if not parts[needed[0]]:
            raise ValueError(f"{self.hparams.root} has no {needed[0]} images: set data.{needed[0]}_fraction above 0")
        if stage == "predict":  # with the names of the files instead of labels
            files = [path for path, _ in parts["test"]]
            self.test_set = ImageFileDataset(files, self.read, self.shape, self.num_readers)
            return
        self._load({name: parts[name] for name in needed})
        if stage == "fit":
            counts = self.train_set.labels.bincount(minlength=self.num_classes).tolist()
            if lost := [name for name, count in zip(self.class_names, counts, strict=True) if not count]:
                raise ValueError(f"none of the train images of {', '.join(lost)} can be read: mend or remove them")

    @override
    def augment(self, images: Tensor) -> Tensor:
        images = random_flip(images) if self.hparams.flip else images
        return random_affine(images, self.hparams.rotation, self.hparams.shift, self.hparams.scale)

    def _find(self) -> dict[str, LabeledFiles]:
        """The files of train, val and test, with their labels; sets the classes."""
        root = Path(self.hparams.root)
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {root}: set data.root to the folder with your images")
        folders = subfolders(root)
        # A class may be called "train", but two of them are hardly called like parts.
        if folders == ["train"] or sum(name.lower() in PART_LIKE for name in folders) > 1:
            if wrong := [name for name in folders if name not in ("train", "val", "test")]:
                raise ValueError(f"{root} has {wrong[0]}/ among its parts, which are called train/, val/ and test/")
            if "train" not in folders:
                raise ValueError(f"{root} has no train/ beside {' and '.join(folders)}")
            part_folders = {name: root / name for name in folders}
        else:
            part_folders = {"train": root}
        train = part_folders["train"]
        self.class_names = subfolders(train)
        self.num_classes = len(self.class_names)
        if self.num_classes < 2:
            raise ValueError(f"{train} has {self.num_classes} subfolder(s): it takes one per class, at least two")
        extensions = image_extensions()
        if loose := sum(path.suffix.lower() in extensions for path in train.iterdir() if path.is_file()):
            warnings.warn(f"{loose} image(s) in {train} itself belong to no class: left out", stacklevel=2)
        found = {part: self._label(folder) for part, folder in part_folders.items()}
        filled = {label for _, label in found["train"]}
        if empty := [name for label, name in enumerate(self.class_names) if label not in filled]:
            raise FileNotFoundError(f"no images in {train / empty[0]}: fill the folder, or remove it")
        if bare := [folder for part, folder in part_folders.items() if not found[part]]:
            raise FileNotFoundError(f"no images in {bare[0]}: fill the folder, or remove it to have some split off")
        return found | self._split(found["train"], [part for part in ("val", "test") if part not in found])

    def _label(self, folder: Path) -> LabeledFiles:
        """The files of each class below a folder, with their labels."""
        extensions, found = image_extensions(), []
        for name in subfolders(folder):
            if name not in self.class_names:
                raise ValueError(f"{folder / name}: train/ has no such class, only {', '.join(self.class_names)}")
            label = self.class_names.index(name)
            with contextlib.suppress(FileNotFoundError):  # an empty class, which only train/ must not have
                found += [(path, label) for path in find_images(folder / name, extensions)]
        return found

    def _split(self, files: LabeledFiles, parts: list[str]) -> dict[str, LabeledFiles]:
        """Splits the parts that have no folder of their own off the training images."""
        labels = torch.tensor([label for _, label in files])
        fractions = [self.hparams[f"{part}_fraction"] for part in parts]
        needed = 1 + sum(fraction > 0 for fraction in fractions)
        if small := [self.class_names[label] for label, n in enumerate(labels.bincount().tolist()) if n < needed]:
            warnings.warn(f"too few images to be in every part: {', '.join(small)}", stacklevel=2)
        names = [path.relative_to(self.hparams.root).as_posix() for path, _ in files]
        chosen = stratified_split(labels, names, fractions, self.hparams.split_seed)
        return {part: [files[i] for i in indices] for part, indices in zip(["train", *parts], chosen, strict=True)}

    def _load(self, parts: Mapping[str, LabeledFiles]) -> None:
        """Fills sets with images in memory, or where they don't fit, with files, after a look for the damaged ones."""
        paths = [path for files in parts.values() for path, _ in files]
        labels = torch.tensor([label for files in parts.values() for _, label in files], dtype=torch.int64)
        fits = len(paths) * math.prod(self.shape) <= self.hparams.memory_limit * 2**30
        images = torch.empty(len(paths) if fits else 0, *self.shape, dtype=torch.uint8)
        readable = torch.zeros(len(paths), dtype=torch.bool)
        for index, image in read_readable(paths, self.read, self.num_readers, self.hparams.max_unreadable):
            readable[index] = True
            if fits:
                images[index] = image
        self.num_workers = 0 if fits else self.num_readers
        end = 0
        for name, files in parts.items():
            start, end = end, end + len(files)
            kept = readable[start:end].nonzero().flatten() + start
            if fits:
                chosen = slice(start, end) if len(kept) == len(files) else kept  # a slice is no copy
                dataset = BatchDataset(images[chosen], labels[chosen])
            else:
                kept_paths = [paths[index] for index in kept]
                dataset = ImageFileDataset(kept_paths, self.read, self.shape, threads=1, labels=labels[kept])
            setattr(self, f"{name}_set", dataset)
