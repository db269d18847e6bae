"""Pictures of people's faces: a folder with a subfolder a person, Olivetti, or Labeled Faces in the Wild."""

import os
import warnings
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.common.base import ImageDataModule, check_fractions
from datamodules.common.samplers import PeopleSampler
from datamodules.common.tensors import BatchDataset, random_affine, random_erasing, random_flip
from datamodules.face_data.detection import MARGIN, FaceDetector
from datamodules.face_data.face_folder import FaceReader, read_people
from datamodules.face_data.face_sources import lfw, olivetti, read_pairs
from datamodules.face_data.face_splits import Pairs, Parts, find_pairs, split_by_person, split_by_picture
from lit_models.common.arguments import NonNegativeFloat, NonNegativeInt, PositiveInt, Probability, check_arguments


class NamedImages(Dataset[tuple[Tensor, list[str]]]):
    """Images in memory, with the names of their files.

    Args:
        images: `(count, channels, height, width)`, uint8.
        names: The names.
    """

    def __init__(self, images: Tensor, names: list[str]) -> None:
        self.images, self.names = images, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, list[str]]:
        """Images `(batch, ...)` and their names."""
        return self.images[indices], [self.names[index] for index in indices]


class FaceDataModule(ImageDataModule):
    """Faces of people: `(batch, 1 or 3, image_size, image_size)` uint8 images and int64 labels.

    `root` holds a subfolder for each person, with pictures of them in it and in the folders below, in any format that
    Pillow reads. Split `by` person, the people of validation and test are never seen in training; split `by` picture,
    some pictures of every person are trained on, and the others are compared with them. Splits are drawn by their own
    seed, and depend on the names alone.

    A training batch is of `identities_per_batch` people with `images_per_identity` pictures each. A batch of validation and test is
    `(images, labels, places, enrolled)`: the place of a picture in the set, and whether others are to be identified by
    it, as they are by the training pictures where the split is by picture.

    Args:
        root: The folder; of the published sets, the one that they are kept in.
        source: "folder"; "olivetti", 40 people with 10 pictures each, or "lfw", Labeled Faces in the Wild, both
            through scikit-learn (extra `face-data`).
        download: Download the published set into `root` if it isn't there.
        by: What is split: people, or the pictures of each.
        train_images: By picture, how many pictures of each person are trained on; 5, if not given.
        val_images: By picture, how many of the others validate; 0, if not given. The rest are the test.
        val_fraction: By person, the share of people for validation; 0.1, if not given.
        test_fraction: By person, the share of people for the test; 0.2, if not given.
        split_seed: Seed of the splits.
        pairs: A list of pairs as LFW's, to test on: the people in it are those of the test. For "lfw", its
            `pairsDevTest.txt`, if not given.
        image_size: Height and width of the images.
        mode: "grey" for 1 channel, "rgb" for 3.
        detect: Whether faces are looked for in the pictures, cut out and levelled (extra `faces`). Otherwise a picture
            is a face, and is brought to the square as a whole.
        faces: Which faces of a picture are taken: the largest, or all.
        margin: Share of a face's side that is added on every side, when it is cut out.
        detector: A file of the detector YuNet, which is to look for faces; OpenCV's Haar cascades do, if not given.
        identities_per_batch: People in a batch.
        images_per_identity: Pictures of each of them.
        flip: Augmentation: left and right exchanged at random.
        rotation: Augmentation: up to this many degrees either way. 0 is off.
        shift: Augmentation: up to this share of the side along each axis. 0 is off.
        scale: Augmentation: size changed by up to this share. 0 is off.
        erasing: Augmentation: a square of up to this share of the side made grey. 0 is off.
        max_unreadable: How many damaged files are named and left out; with more of them, nothing is trained.
        num_workers: Threads that read pictures; one a processor, if not given.
        cache_on_device: Whether images and labels are kept in the device's memory, a GPU's for one.

    Attributes:
        people: The names of all people, by the labels of validation and test. Those of training are `class_names`.

    Raises:
        FileNotFoundError: There is no such folder, or no picture of a person.
        ValueError: There are too few people or pictures for the split; too many files are damaged; an option is out of
            range, or does not go with another.
        ConnectionError: The download failed.
    """

    task = "face recognition"
    people: list[str]
    pairs: Pairs | None = None

    def __init__(
        self,
        root: str = "data",
        source: Literal["folder", "olivetti", "lfw"] = "folder",
        download: bool = False,
        by: Literal["person", "picture"] = "person",
        train_images: PositiveInt | None = None,
        val_images: NonNegativeInt | None = None,
        val_fraction: Probability | None = None,
        test_fraction: Probability | None = None,
        split_seed: int = 0,
        pairs: str | None = None,
        image_size: PositiveInt = 48,
        mode: Literal["grey", "rgb"] = "grey",
        detect: bool = False,
        faces: Literal["largest", "all"] = "largest",
        margin: NonNegativeFloat = MARGIN,
        detector: str | None = None,
        identities_per_batch: PositiveInt = 16,
        images_per_identity: PositiveInt = 4,
        flip: bool = False,
        rotation: float = 0.0,
        shift: Probability = 0.0,
        scale: Probability = 0.0,
        erasing: Probability = 0.0,
        max_unreadable: NonNegativeInt = 10,
        num_workers: PositiveInt | None = None,
        cache_on_device: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(FaceDataModule, locals())
        idle = {"train_images": train_images, "val_images": val_images}
        if by == "picture":
            idle = {"val_fraction": val_fraction, "test_fraction": test_fraction, "pairs": pairs}
        if wrong := [name for name, value in idle.items() if value is not None]:
            raise ValueError(f"{wrong[0]} is for a split by {'person' if by == 'picture' else 'picture'}: leave it out")
        if not detect and (detector or faces == "all" or margin != MARGIN):
            raise ValueError("detector, faces and margin are for faces that are looked for: set detect to true")
        self.save_hyperparameters(logger=False)
        self.shape = (3 if mode == "rgb" else 1, image_size, image_size)
        self.readers = num_workers or os.cpu_count() or 1
        self.shares = 0.1 if val_fraction is None else val_fraction, 0.2 if test_fraction is None else test_fraction
        check_fractions(*self.shares)
        self.reader = FaceReader(self.shape, FaceDetector(detector) if detect else None, margin, every=faces == "all")
        self.read = self.reader.largest
        self.labels: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Images in a batch of a process."""
        return self.hparams.identities_per_batch * self.hparams.images_per_identity

    def sampler(self, dataset: BatchDataset, seed: int, epoch: int, skip: int) -> PeopleSampler:
        """Draws batches of people."""
        options = self.hparams
        return PeopleSampler(
            dataset.labels, options.identities_per_batch, options.images_per_identity, seed, epoch, skip
        )

    def prepare_data(self) -> None:
        """Downloads the published set, once a machine."""
        if self.hparams.download and self.hparams.source != "folder":
            {"olivetti": olivetti, "lfw": lfw}[self.hparams.source](self.hparams.root, download=True)

    def setup(self, stage: str) -> None:
        """Reads the pictures, once, and splits them."""
        if self.labels is None:
            self._load()
        train, val, test = self._split()
        trained = self.labels[train].unique()
        self.class_names, self.num_classes = [self.people[label] for label in trained], len(trained)
        if stage in ("fit", "validate"):
            self.train_set = BatchDataset(self.images[train], torch.searchsorted(trained, self.labels[train]))
            self.val_set = self._compared(val, train)
        elif not len(test):
            raise ValueError("nothing is split off for the test: set data.test_fraction above 0")
        elif stage == "test":
            self.test_set = self._compared(test, train)
        else:
            self.test_set = NamedImages(self.images[test], [self.names[place] for place in test])

    def augment(self, images: Tensor) -> Tensor:
        """Training images, each flipped, rotated, shifted, scaled and in part erased by its own random amounts."""
        options = self.hparams
        images = random_flip(images) if options.flip else images
        if options.rotation or options.shift or options.scale:
            shift = options.shift * options.image_size
            images = random_affine(images, options.rotation, shift, options.scale, outside="border")
        return random_erasing(images, options.erasing) if options.erasing else images

    def _load(self) -> None:
        """Reads all pictures: `images`, `names`, `people`, and who is in each as `labels`."""
        options = self.hparams
        if options.source == "olivetti":
            images, self.names = olivetti(options.root, download=False)
            size = (options.image_size, options.image_size)
            images = F.interpolate(images.float(), size, mode="bilinear", antialias=True).round().byte()
            self.images = images.expand(-1, self.shape[0], -1, -1)
        else:
            folder = (
                lfw(options.root, download=False) / "lfw_funneled" if options.source == "lfw" else Path(options.root)
            )
            self.images, self.names = read_people(folder, self.reader, self.readers, options.max_unreadable)
        owners = [name.partition("/")[0] for name in self.names]
        self.people = sorted(set(owners))
        numbers = {person: label for label, person in enumerate(self.people)}
        self.labels = torch.tensor([numbers[owner] for owner in owners])

    def _split(self) -> Parts:
        """The places of the pictures of train, val and test; sets the pairs."""
        options, seed = self.hparams, self.hparams.split_seed
        if options.by == "picture":
            train, val = options.train_images or 5, options.val_images or 0
            return split_by_picture(self.labels, self.people, self.names, train, val, seed)
        path = options.pairs
        if options.source == "lfw" and path is None:
            path = Path(options.root, "lfw_home", "pairsDevTest.txt")
        if path is None:
            return split_by_person(self.labels, self.people, *self.shares, seed)
        listed = read_pairs(path)
        parts = split_by_person(self.labels, self.people, *self.shares, seed, tested=listed.people)
        self.pairs, lacking = find_pairs(listed, [self.names[place] for place in parts[2]])
        if not len(self.pairs.same):
            raise ValueError(f"none of the pictures in {path} is among the data")
        if lacking:
            warnings.warn(f"{lacking} of {len(listed.same)} pairs lack a picture and are left out", stacklevel=2)
        return parts

    def _compared(self, places: Tensor, train: Tensor) -> BatchDataset:
        """Pictures to compare; where their people are trained on, with the pictures that they are identified by."""
        if self.hparams.by == "picture" and len(places):
            places = torch.cat([train, places]).sort().values
        return BatchDataset(
            self.images[places], self.labels[places], torch.arange(len(places)), torch.isin(places, train)
        )
