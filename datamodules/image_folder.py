"""Your own images: a folder with one subfolder per class, or with `train/`, `val/` and `test/` of those."""

import math
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

from datamodules.common.base import ImageDataModule, check_fractions, describe_classes
from datamodules.common.class_folders import find_class_folders
from datamodules.common.image_io import (
    HEIC,
    ImageFileDataset,
    find_files,
    image_extensions,
    is_image,
    read_image,
    read_readable,
)
from datamodules.common.splits import stratified_split
from datamodules.common.tensors import BatchDataset, random_affine, random_flip
from lit_models.common.arguments import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_arguments,
)
from lit_models.common.messages import format_list, inform, missing_extra, suggest

LabeledFiles = list[tuple[Path, int]]
# Endings of pictures and scans, most of which Pillow does not read; other files beside the pictures may be anything.
PICTURES = {*HEIC, ".avif", ".webp", ".jp2", ".jxl", ".svg", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw"}
PICTURES |= {".orf", ".raf", ".rw2", ".raw", ".pdf", ".dcm", ".nii", ".npy", ".npz", ".mat"}


class ImageFolderDataModule(ImageDataModule):
    """A folder of images: `(batch, 3 or 1, image_size, image_size)` uint8 images and int64 labels.

    `root` holds one subfolder per class, whose images may lie in further subfolders; classes are in alphabetical order.
    Or it holds `train/`, `val/` and `test/`, or folders with similar names, each with the class folders: `train/`
    defines the classes, and `val/` and `test/` are split off `train/` where they are missing, or hold images without
    class folders. Splits are stratified, with at least one image of each class in every part where there are enough.
    They depend on `split_seed` and the file names alone, so that added images leave nearly all others in their parts.
    Links to files and folders are followed.

    Every format that Pillow reads will do, of any size and mode: see `datamodules.common.image_io.open_image`; HEIC
    with the extra `heic`. Images are read and resized once, and kept in memory; if they need more than `memory_limit`,
    they are read once to find the damaged ones, and then in every epoch by worker processes.

    Args:
        root: The folder.
        image_size: Height and width of the images.
        grayscale: Read images with 1 channel instead of 3.
        max_value: What is white in images deeper than 8 bits, 4095 for 12 bits. If not given, it is recognized over all
            of them, as the largest number of 8, 10, 12, 14 or 16 bits, and stored in checkpoints.
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
        ValueError: There are no class folders, or they don't fit together; too many files are damaged, or more than
            half of a class; an argument is out of range.
    """

    resume_may_change = frozenset({"root", "memory_limit", "num_workers", "cache_on_device"})
    from_data = frozenset({"max_value"})

    def __init__(
        self,
        root: str,
        image_size: PositiveInt = 48,
        grayscale: bool = False,
        max_value: PositiveFloat | None = None,
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
        self.num_readers = num_workers or os.cpu_count() or 1

    @property
    def read(self) -> partial[Tensor]:
        """Reads an image file as `shape`, uint8."""
        return partial(read_image, side=self.shape[1], channels=self.shape[0], max_value=self.hparams.max_value)

    @override
    def setup(self, stage: str) -> None:
        parts = self._find()
        needed = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",))
        if not parts[needed[0]]:
            raise ValueError(f"{self.hparams.root} has no {needed[0]} images: set data.{needed[0]}_fraction above 0")
        if stage == "predict":  # with the names of the files instead of labels
            files = [path for path, _ in parts["test"]]
            self.test_set = ImageFileDataset(files, self.read, self.shape, self.num_readers)
        else:
            self._load({name: parts[name] for name in needed})
        found = {part: [label for _, label in files] for part, files in parts.items()}
        read = {part: getattr(self, f"{part}_set").labels.tolist() for part in needed if stage != "predict"}
        for part in parts if stage == "fit" else needed:
            if labels := (found | read)[part]:
                inform(f"{self.hparams.root}: {part} {describe_classes(labels, self.class_names, 'images')}")
        if stage == "fit":
            self._check_classes(found["train"], read["train"])

    def _check_classes(self, found: list[int], read: list[int]) -> None:
        """Raises a ValueError where most images of a class are damaged; warns where classes are of uneven sizes."""
        before, after = Counter(found), Counter(read)
        damaged = {label: count - after[label] for label, count in before.items() if 2 * after[label] < count}
        if damaged:
            lost = [f"{count} of {before[label]} of {self.class_names[label]}" for label, count in damaged.items()]
            raise ValueError(f"most train images of a class cannot be read, {format_list(lost)}: mend or remove them")
        sizes = [(count, self.class_names[label]) for label, count in after.most_common()]
        (most, name), (fewest, other) = sizes[0], sizes[-1]
        if most >= 10 * fewest:
            warnings.warn(
                f"{most} train images are of {name}, {fewest} of {other}: set model.class_weights to balanced to have "
                "all classes count alike, and look at balanced_accuracy",
                stacklevel=2,
            )

    @override
    def augment(self, images: Tensor) -> Tensor:
        images = random_flip(images) if self.hparams.flip else images
        return random_affine(images, self.hparams.rotation, self.hparams.shift, self.hparams.scale)

    def _find(self) -> dict[str, LabeledFiles]:
        """The files of train, val and test, with their labels; sets the classes."""
        root = Path(self.hparams.root)
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {root}: set data.root to the folder with your images")
        folders = find_class_folders(root)
        train = folders.parts["train"]
        self.class_names, self.num_classes = sorted(train), len(train)
        if self.num_classes < 2:
            where = next(iter(train.values())).parent if train else root
            raise ValueError(f"{where} has {self.num_classes} subfolder(s): it takes one per class, at least two")
        if folders.root != root:
            inform(f"{root}: read from {folders.root}")
        for folder in folders.unlabelled:
            inform(f"{folder} holds images without classes, which are left out: predict --images {folder} labels them")
        found = {part: self._label(part, classes) for part, classes in folders.parts.items()}
        if bare := [part for part in found if not found[part]]:
            folder = next((path.parent for path in folders.parts[bare[0]].values()), folders.root / bare[0])
            raise FileNotFoundError(f"no images in {folder}: fill the folder, or remove it to have some split off")
        return found | self._split(found["train"], [part for part in ("val", "test") if part not in found])

    def _label(self, part: str, folders: dict[str, Path]) -> LabeledFiles:
        """The image files of a part, with their labels, from the folder of each class; says what is left out."""
        extensions, files, left_out = image_extensions(), [], Counter()
        paths = {folder.resolve(): name for name, folder in folders.items()}
        for name, folder in folders.items():
            if name not in self.class_names:
                hint = suggest(name, self.class_names)
                raise ValueError(f"{folder}: train/ has no such class, only {', '.join(self.class_names)}{hint}")
            if paths[folder.resolve()] != name:
                raise ValueError(f"{folder} is the folder of the class {paths[folder.resolve()]}, too: remove the link")
            found, others = find_files(folder)
            images = [path for path in found if is_image(path, extensions)]
            rest = set(found) - set(images)
            endings = Counter(path.suffix.lower() or "without an ending" for path in sorted(rest))
            self._check_endings(folder, len(images), Counter({e: n for e, n in endings.items() if e in PICTURES}))
            if not images and part == "train":
                only = f", but {format_list([f'{n} {kind}' for kind, n in endings.items()])}" if endings else ""
                raise FileNotFoundError(f"no images in {folder}{only}: fill the folder, or remove it")
            files += [(path, self.class_names.index(name)) for path in images]
            left_out += others + endings
        for parent in {folder.parent for folder in folders.values()}:
            if loose := sum(path.is_file() and is_image(path, extensions) for path in parent.iterdir()):
                warnings.warn(f"{loose} image(s) in {parent} itself belong to no class: left out", stacklevel=2)
        if left_out:
            inform(f"{part}: left out {format_list([f'{n} {kind}' for kind, n in left_out.most_common()])}")
        return files

    def _check_endings(self, folder: Path, count: int, unread: Counter[str]) -> None:
        """Warns of pictures that Pillow doesn't read, beside the `count` that it does; raises a ValueError for most."""
        if not (lost := unread.total()):
            return
        extra = HEIC & unread.keys()
        hint = missing_extra("heic", f"reading {min(extra)}") if extra else "convert them to PNG"
        text = f"{lost} of {lost + count} pictures in {folder} are {', '.join(unread)}, which cannot be read: {hint}"
        if lost > count:
            raise ValueError(text)
        warnings.warn(text, stacklevel=2)

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
        ranges: dict[Path, float] = {}  # what is white in each deep image, by itself
        read = partial(self.read, ranges=ranges)
        for index, image in read_readable(paths, read, self.num_readers, self.hparams.max_unreadable):
            readable[index] = True
            if fits:
                images[index] = image
        if ranges and self.hparams.max_value is None:
            self.hparams.max_value = white = max(ranges.values())
            inform(f"{len(ranges)} images are deeper than 8 bits: {white:g} is white; data.max_value sets another")
            again = [i for i in readable.nonzero().flatten().tolist() if ranges.get(paths[i], white) != white]
            wrong = [paths[i] for i in again] if fits else []
            for number, image in read_readable(wrong, self.read, self.num_readers, max_unreadable=0):
                images[again[number]] = image
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
