"""Images of people's faces: a folder with one subfolder per person, Olivetti, or Labeled Faces in the Wild."""

import os
import warnings
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from datamodules.common.base import ImageDataModule, check_fractions
from datamodules.common.samplers import IdentitySampler
from datamodules.common.tensors import BatchDataset, random_affine, random_erasing, random_flip
from datamodules.face_data.detection import MARGIN, FaceDetector
from datamodules.face_data.face_folder import FaceReader, read_identities
from datamodules.face_data.face_sources import lfw, olivetti, read_pairs
from datamodules.face_data.face_splits import Pairs, Parts, find_pairs, split_by_image, split_by_person
from lit_models.common.arguments import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt, check_arguments
from lit_models.common.messages import format_list, inform


class NamedImages(Dataset[tuple[Tensor, list[str]]]):
    """Images `(count, channels, height, width)`, uint8, in memory, with the names of their files."""

    def __init__(self, images: Tensor, names: list[str]) -> None:
        self.images, self.names = images, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, list[str]]:
        return self.images[indices], [self.names[index] for index in indices]


class FaceDataModule(ImageDataModule):
    """Faces of people: `(batch, 1 or 3, image_size, image_size)` uint8 images and int64 labels.

    `root` holds one subfolder per person, whose images may lie in further subfolders, in any format that Pillow reads.
    Split by person, the people of validation and test are never seen in training. Split by image, some images of every
    person are trained on, and the others are compared with them. Splits depend on `split_seed` and the names alone.

    A training batch holds `identities_per_batch` people with `images_per_identity` images each. A batch of validation
    and test is `(images, labels, indices, enrolled)`: the index of an image in the set, and whether others are
    identified by it, as by the training images where the split is by image.

    Args:
        root: The folder; of the published data sets, the one that they are kept in.
        source: "folder"; "olivetti", 40 people with 10 images each, or "lfw", Labeled Faces in the Wild, both through
            scikit-learn (extra `face-data`).
        download: Download the published data set into `root` if it isn't there.
        split_by: Whether to split the people, or the images of each.
        train_images: Split by image: number of training images per person. 5, if not given.
        val_images: Split by image: number of validation images per person. 0, if not given. The rest is the test.
        val_fraction: Split by person: fraction of the people for validation. 0.1, if not given.
        test_fraction: Split by person: fraction of the people for the test. 0.2, if not given.
        split_seed: Seed of the splits.
        pairs: A list of pairs in LFW's format to test on; the people in it are those of the test. For "lfw", its
            `pairsDevTest.txt`, if not given.
        image_size: Height and width of the images.
        grayscale: Read images with 1 channel instead of 3.
        detect: Detect faces, crop and align them (extra `faces`). Otherwise an image is one face, and is resized as a
            whole.
        faces: Which faces of an image to take: the largest, or all.
        margin: Margin around a detected face, as a fraction of its side.
        detector: A model file of the detector YuNet. OpenCV's Haar cascades, if not given.
        identities_per_batch: Number of people in a batch.
        images_per_identity: Number of images of each of them.
        flip: Augmentation: random horizontal flip.
        rotation: Augmentation: random rotation of up to this many degrees; 0 is off.
        shift: Augmentation: random shift of up to this fraction of the side along each axis; 0 is off.
        scale: Augmentation: random scaling by a factor of 1 - scale..1 + scale; 0 is off.
        erasing: Augmentation: random square of up to this fraction of the side filled with gray; 0 is off.
        max_unreadable: Most damaged files that are skipped with a warning; more of them are an error.
        num_workers: Number of threads that read images. One per processor, if not given.
        cache_on_device: Keep images and labels in the device's memory.

    Attributes:
        identities: Names of all people, by the labels of validation and test; `class_names` are those of training.

    Raises:
        FileNotFoundError: There is no such folder, or no image of a person.
        ValueError: There are too few people or images for the split; too many files are damaged; an argument is out of
            range, or does not go with another.
        ConnectionError: The download failed.
    """

    task = "face recognition"
    resume_may_change = frozenset({"root", "download", "num_workers", "cache_on_device"})
    identities: list[str]
    pairs: Pairs | None = None

    def __init__(
        self,
        root: str = "data",
        source: Literal["folder", "olivetti", "lfw"] = "folder",
        download: bool = False,
        split_by: Literal["person", "image"] = "person",
        train_images: PositiveInt | None = None,
        val_images: NonNegativeInt | None = None,
        val_fraction: Fraction | None = None,
        test_fraction: Fraction | None = None,
        split_seed: int = 0,
        pairs: str | None = None,
        image_size: PositiveInt = 48,
        grayscale: bool = True,
        detect: bool = False,
        faces: Literal["largest", "all"] = "largest",
        margin: NonNegativeFloat = MARGIN,
        detector: str | None = None,
        identities_per_batch: PositiveInt = 16,
        images_per_identity: PositiveInt = 4,
        flip: bool = False,
        rotation: float = 0.0,
        shift: Fraction = 0.0,
        scale: Fraction = 0.0,
        erasing: Fraction = 0.0,
        max_unreadable: NonNegativeInt = 10,
        num_workers: PositiveInt | None = None,
        cache_on_device: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(FaceDataModule, locals())
        unused = {"train_images": train_images, "val_images": val_images}
        if split_by == "image":
            unused = {"val_fraction": val_fraction, "test_fraction": test_fraction, "pairs": pairs}
        if wrong := [name for name, value in unused.items() if value is not None]:
            other = "person" if split_by == "image" else "image"
            raise ValueError(f"{wrong[0]} is for a split by {other}: leave it out")
        if download and source == "folder":
            raise ValueError("download is for published data sets: set it to false, or source to olivetti or lfw")
        if not detect and (detector or faces == "all" or margin != MARGIN):
            raise ValueError("detector, faces and margin are for detected faces: set detect to true")
        self.save_hyperparameters(logger=False)
        self.shape = (1 if grayscale else 3, image_size, image_size)
        self.num_readers = num_workers or os.cpu_count() or 1
        self.fractions = 0.1 if val_fraction is None else val_fraction, 0.2 if test_fraction is None else test_fraction
        check_fractions(*self.fractions)
        self.reader = FaceReader(self.shape, FaceDetector(detector) if detect else None, margin, every=faces == "all")
        self.read = self.reader.largest
        self.labels: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Batch size per process; setting it sets `identities_per_batch`, rounded down, at least 1."""
        return self.hparams.identities_per_batch * self.hparams.images_per_identity

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self.hparams.identities_per_batch = max(size // self.hparams.images_per_identity, 1)

    @override
    def sampler(self, dataset: BatchDataset, seed: int, epoch: int, skip: int) -> IdentitySampler:
        hp = self.hparams
        return IdentitySampler(dataset.labels, hp.identities_per_batch, hp.images_per_identity, seed, epoch, skip)

    @override
    def prepare_data(self) -> None:
        if self.hparams.download:
            {"olivetti": olivetti, "lfw": lfw}[self.hparams.source](self.hparams.root, download=True)

    @override
    def setup(self, stage: str) -> None:
        known = self.labels is not None
        if not known:
            self._load()
        train, val, test = self._split()
        if not known:
            self._inform(train, val, test)
        trained = self.labels[train].unique()
        self.class_names, self.num_classes = [self.identities[label] for label in trained], len(trained)
        if stage in ("fit", "validate"):
            self.train_set = BatchDataset(self.images[train], torch.searchsorted(trained, self.labels[train]))
            self.val_set = self._compared(val, train)
        elif not len(test):
            raise ValueError("nothing is split off for the test: set data.test_fraction above 0")
        elif stage == "test":
            self.test_set = self._compared(test, train)
        else:
            self.test_set = NamedImages(self.images[test], [self.names[index] for index in test])

    @override
    def augment(self, images: Tensor) -> Tensor:
        hp = self.hparams
        images = random_flip(images) if hp.flip else images
        images = random_affine(images, hp.rotation, hp.shift * hp.image_size, hp.scale, padding_mode="border")
        return random_erasing(images, hp.erasing) if hp.erasing else images

    def _load(self) -> None:
        """Reads all images: `images`, `names`, `identities`, and the identity of each image as `labels`."""
        hp = self.hparams
        if hp.source == "olivetti":
            images, self.names = olivetti(hp.root, download=False)
            size = (hp.image_size, hp.image_size)
            images = F.interpolate(images.float(), size, mode="bilinear", antialias=True).round().byte()
            self.images = images.expand(-1, self.shape[0], -1, -1)
        else:
            folder = lfw(hp.root, download=False) / "lfw_funneled" if hp.source == "lfw" else Path(hp.root)
            self.images, self.names = read_identities(folder, self.reader, self.num_readers, hp.max_unreadable)
        owners = [name.partition("/")[0] for name in self.names]
        self.identities = sorted(set(owners))
        numbers = {person: label for label, person in enumerate(self.identities)}
        self.labels = torch.tensor([numbers[owner] for owner in owners])

    def _inform(self, *parts: Tensor) -> None:
        """Says how many people and images each part has, and who has too few."""
        said = [
            f"{name} {len(part)} images of {len(self.labels[part].unique())} people"
            for name, part in zip(("train", "val", "test"), parts, strict=True)
        ]
        inform(f"split by {self.hparams.split_by}: {', '.join(said)}")
        if single := (self.labels.bincount() == 1).nonzero().flatten().tolist():
            names = format_list([self.identities[label] for label in single])
            inform(f"one image only, which can be compared with other people's alone, of {names}")

    def _split(self) -> Parts:
        """The indices of the images of train, val and test; sets the pairs."""
        hp, seed = self.hparams, self.hparams.split_seed
        if hp.split_by == "image":
            train, val = hp.train_images or 5, hp.val_images or 0
            return split_by_image(self.labels, self.identities, self.names, train, val, seed)
        path = hp.pairs
        if hp.source == "lfw" and path is None:
            path = Path(hp.root, "lfw_home", "pairsDevTest.txt")
        if path is None:
            return split_by_person(self.labels, self.identities, *self.fractions, seed)
        listed = read_pairs(path)
        tested = {image.rpartition("_")[0] for first, second, *_ in listed for image in (first, second)}
        parts = split_by_person(self.labels, self.identities, *self.fractions, seed, tested)
        self.pairs = find_pairs(listed, [self.names[index] for index in parts[2]])
        if not len(self.pairs.same):
            raise ValueError(f"none of the images in {path} is among the data")
        if lacking := len(listed) - len(self.pairs.same):
            warnings.warn(f"{lacking} of {len(listed)} pairs lack an image and are left out", stacklevel=2)
        return parts

    def _compared(self, indices: Tensor, train: Tensor) -> BatchDataset:
        """Images to compare; split by image, together with the training images that they are identified by."""
        if self.hparams.split_by == "image" and len(indices):
            indices = torch.cat([train, indices]).sort().values
        enrolled = torch.isin(indices, train)
        return BatchDataset(self.images[indices], self.labels[indices], torch.arange(len(indices)), enrolled)
