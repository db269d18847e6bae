"""A face embedder: pictures of a person come close together, those of different people far apart.

Images `(batch, in_channels, image_size, image_size)`, a face each -> embeddings `(batch, embedding_dim)` of length 1,
whose products are cosine similarities.

The network is that of `lit_models.faces.backbones`, or one of torchvision. It is trained as a classifier of the people
at hand, by `lit_models.faces.margins`; its head, a row a person, is needed for training only. An embedding is what
`lit_models.faces.discriminants` makes of the network's features.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_models.faces import verification
from lit_models.faces.backbones import compact, torchvision_network
from lit_models.faces.discriminants import Discriminants
from lit_models.faces.margins import MARGINS, Margin, with_margin
from lit_models.training.checkpoint import record_classes
from lit_models.training.machine import keep_input_precision, keep_sums_precise
from lit_models.training.resume import gathered, kept_progress, record_progress, resume_progress
from lit_models.training.schedule import optimizer_and_schedule, refuse_longer_training

Batch = tuple[Tensor, Tensor]
SUMS = ("train_images", "train_loss", "train_right")  # over the epoch in progress


class FaceEmbedder(LightningModule):
    """A network from faces to embeddings, and for training a head with a row a person.

    Validation and test compare people or images that were not trained on: verification over all pairs of images (ROC,
    AUC, EER, TAR at FAR 1e-2 and 1e-3), and closed-set identification (rank 1 and 5), as
    `lit_models.faces.verification` describes. Batches are `(images, labels)`, or, with the images that others are
    identified by among them, `(images, labels, places, enrolled)`.

    Args:
        in_channels: Channels of the images: 1 for grey, 3 for colour.
        image_size: Height and width of the images, 32 or more.
        embedding_dim: Numbers in an embedding, without a backbone at most 775 of grey images, 825 of coloured ones;
            more of them tell strangers apart better where there are few people to train on.
        num_classes: People to train on; as many as the data have, if not given.
        margin: "arcface" adds an angle between an embedding and its person's row of the head, "cosface" subtracts from
            their cosine, "none" is a softmax of the cosines.
        margin_size: The angle in radians, or what is subtracted; 0.5 and 0.35, the papers', if not given.
        scale: What the cosines are multiplied with before the softmax.
        dropout: Probability of dropping a feature in training.
        flip_average: Whether an embedding is, but in training, that of the image and its mirror image together.
        backbone: The name of a classification network of torchvision to train in place of the one written here,
            "resnet18" for one.
        weights: "DEFAULT" has that start with torchvision's weights, which are downloaded once.
        optimizer: Called with the parameters, returns the optimizer.
        lr_scheduler: Called with the optimizer, returns the schedule: see `lit_models.training.schedule`.

    Attributes:
        threshold: The similarity from which on two images are taken to be of one person: on the validation pairs a
            hundredth of the impostors is accepted with it; infinite while there has been no validation.
        stranger_threshold: The similarity from which on a face is taken to be one of many people: a hundredth of the
            validation images is accepted with it as somebody trained on, or as somebody else of validation. Infinite
            while there has been no validation on people not trained on.
        centres: `(num_classes, features)`, running means of the features of each person trained on.
        evaluation: What the last validation or test compared.

    Raises:
        ValueError: An option is out of range; images have another size or other channels; the data have another number
            of people; torchvision has no such network, or its last layer is not a linear one.
        ConnectionError: The weights could not be downloaded.
    """

    threshold: Tensor
    stranger_threshold: Tensor
    centres: Tensor | None

    def __init__(
        self,
        in_channels: Literal[1, 3] = 1,
        image_size: int = 48,
        embedding_dim: int = 128,
        num_classes: int | None = None,
        margin: Margin = "cosface",
        margin_size: float | None = None,
        scale: float = 24.0,
        dropout: float = 0.2,
        flip_average: bool = True,
        backbone: str | None = None,
        weights: Literal["DEFAULT"] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=2e-3, weight_decay=0.05),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        least = {"image_size": (image_size, 32), "embedding_dim": (embedding_dim, 1), "num_classes": (num_classes, 2)}
        for name, (value, bound) in least.items():
            if value is not None and value < bound:
                raise ValueError(f"{name} is {value}: it must be at least {bound}")
        if in_channels not in (1, 3):
            raise ValueError(f"in_channels is {in_channels}: it must be 1 for grey or 3 for colour")
        if margin not in MARGINS:
            raise ValueError(f"margin is {margin!r}: it must be {' or '.join(MARGINS)}")
        if margin == "none" and margin_size:
            raise ValueError(f"margin_size is {margin_size}, but margin is none: leave it out, or choose a margin")
        if scale <= 0 or (margin_size or 0) < 0:
            raise ValueError(f"scale is {scale} and margin_size {margin_size}: they must be above 0")
        if weights and not backbone:
            raise ValueError(f"weights is {weights}, but they are for a network of torchvision: name it as backbone")
        if backbone is None:
            self.network, features = compact(in_channels, image_size)
        else:
            self.network, features = torchvision_network(backbone, weights, embedding_dim), embedding_dim
        if embedding_dim > features:
            raise ValueError(f"embedding_dim is {embedding_dim}: the network has {features} features, so at most that")
        self.discriminants = Discriminants(features, embedding_dim)
        weights = None  # what it started from is in every checkpoint
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.in_channels, self.image_size = in_channels, image_size
        self.margin_size = MARGINS[margin] if margin_size is None else margin_size
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.register_parameter("head", None)
        self.register_buffer("centres", None)
        if num_classes is not None:
            self._add_head(num_classes)
        self.register_buffer("threshold", torch.tensor(float("inf")))
        self.register_buffer("stranger_threshold", torch.tensor(float("inf")))
        self.example_input_array = torch.zeros(1, in_channels, image_size, image_size, dtype=torch.uint8)
        self.metrics = nn.ModuleDict(
            {name: MeanMetric(nan_strategy="disable") for name in ("train_loss", "train_accuracy")}
        )
        self.seen: list[tuple[Tensor, ...]] = []
        self.evaluation: verification.Evaluation | None = None
        self.resumed: list[dict[str, Any]] | None = None
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings `(batch, embedding_dim)`, float32 and of length 1, of images `(batch, in_channels, side, side)`.

        They are uint8 in 0..255 or float in 0..1, and `image_size` pixels a side.
        """
        pixels = self.normalize(images)
        if self.training or not self.hparams.flip_average:
            return self._embed(pixels)
        return F.normalize(self._embed(pixels) + self._embed(pixels.flip(3)))

    def features(self, pixels: Tensor) -> Tensor:
        """What the network sees `(batch, features)` in normalised images `(batch, in_channels, side, side)`."""
        if self.in_channels < 3 and self.hparams.backbone:
            pixels = pixels.expand(-1, 3, -1, -1)
        return self.network(pixels)

    def normalize(self, images: Tensor) -> Tensor:
        """Images with mean 0 and standard deviation 1, each by itself, in the network's dtype.

        So the light and the contrast of a photograph count less.

        Raises:
            ValueError: They have another size or other channels than the network takes.
        """
        expected = (self.in_channels, self.image_size, self.image_size)
        if not torch.jit.is_tracing() and tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"the images are (channels, height, width) = {tuple(images.shape[1:])}, but FaceEmbedder takes "
                f"{expected}: set model.in_channels and model.image_size, or the data's mode and image_size"
            )
        pixels = images.float() if images.is_floating_point() else images.float() / 255
        mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
        std = (pixels - mean).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return ((pixels - mean) / (std + 1e-3)).to(next(self.network.parameters()).dtype)

    def setup(self, stage: str) -> None:
        """Sizes the head for the data's people."""
        keep_input_precision(self.trainer)
        if stage != "fit":
            return
        data, known = self.trainer.datamodule, self.hparams.num_classes
        people = getattr(data, "num_classes", known)
        if people is None:
            raise ValueError("the data do not say how many people they show: set model.num_classes")
        if known is not None and people != known:
            raise ValueError(
                f"{type(data).__name__} has {people} people to train on, but num_classes of FaceEmbedder is {known}: "
                f"leave model.num_classes out, or lit_models.load(path, num_classes={people}) for a fresh head"
            )
        if self.head is None:
            self.hparams.num_classes = people
            self._add_head(people)

    def on_train_start(self) -> None:
        """Goes on where the checkpoint was written, if there is one."""
        refuse_longer_training(self.trainer)
        self._empty_sums()
        for name, value in resume_progress(self).items():
            if name in SUMS:
                setattr(self, name, value.to(self.device) if isinstance(value, Tensor) else value)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch `(images, labels)`, labels in 0..num_classes - 1.

        Raises:
            ValueError: It is of a single image, which has nothing to be normalised with.
        """
        if batch_idx == 0:  # on_train_epoch_start is left out where a run is resumed
            self._empty_sums()
        images, labels = batch
        if len(labels) < 2:
            raise ValueError(
                "a training batch has 1 image, but takes 2 at least: raise data.batch_people or data.batch_pictures, "
                "or set drop_last in a loader of your own"
            )
        features = self.features(self.normalize(images))
        self._keep(features.detach().float(), labels)
        seen = F.normalize(F.dropout(features, self.hparams.dropout).float())
        cosines = F.linear(seen, F.normalize(self.head.float()))  # (batch, num_classes)
        loss = F.cross_entropy(
            self.hparams.scale * with_margin(cosines, labels, self.hparams.margin, self.margin_size), labels
        )
        self.train_images += len(labels)
        self.train_loss.add_(loss.detach(), alpha=len(labels))
        self.train_right.add_((cosines.argmax(dim=1) == labels).sum())
        self.log("train/loss_step", loss, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Logs loss and accuracy over the epoch's training images; the accuracy is without the margin."""
        for name, total in (("loss", self.train_loss), ("accuracy", self.train_right)):
            metric = self.metrics[f"train_{name}"]
            metric.update((total / self.train_images).expand(self.train_images))
            self.log(f"train/{name}", metric, on_step=False, on_epoch=True, prog_bar=True)

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """The embeddings of a batch, which are compared at the end."""
        return self._see(batch)

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """The embeddings of a batch, which are compared at the end."""
        return self._see(batch)

    def on_validation_epoch_end(self) -> None:
        """Compares what was seen: logs `val/eer` and the rest, and chooses the threshold."""
        self._compare("val")

    def on_test_epoch_end(self) -> None:
        """Compares what was seen, and logs `test/eer` and the rest."""
        self._compare("test")

    def predict_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> list[dict[str, Any]]:
        """A row an image, of a batch of images and their names or places: it, and the embedding's numbers."""
        key = "label" if isinstance(batch[1], Tensor) else "file"
        names = batch[1].tolist() if isinstance(batch[1], Tensor) else batch[1]
        numbers = self(batch[0]).tolist()
        return [{key: name} | dict(enumerate(row)) for name, row in zip(names, numbers, strict=True)]

    def configure_optimizers(self) -> dict[str, Any]:
        """The injected optimizer and schedule."""
        return optimizer_and_schedule(self, self.optimizer, self.lr_scheduler)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Names the classes of the model and its data, and says how far the epoch in progress is."""
        record_classes(self, checkpoint)
        record_progress(self, checkpoint, {name: getattr(self, name) for name in SUMS if hasattr(self, name)})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps how far the epoch was, for when training starts."""
        self.resumed = kept_progress(self, checkpoint)

    def remove_head(self) -> None:
        """Leaves only what makes embeddings."""
        self.head, self.centres, self.hparams.num_classes = None, None, None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FaceEmbedder":
        """Moves and casts the model; thresholds, means and metrics keep their digits, which 16 bits lack."""
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        keep_sums_precise(self.metrics)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    def _add_head(self, people: int) -> None:
        features = len(self.discriminants.projection)
        self.head = nn.Parameter(nn.init.xavier_normal_(torch.empty(people, features)))
        self.centres = torch.zeros(people, features, dtype=torch.float32)

    def _keep(self, features: Tensor, labels: Tensor) -> None:
        """Takes a training batch into what is kept of the features."""
        self.discriminants.update(features, labels)
        alike = (labels[:, None] == labels).sum(dim=1, keepdim=True)
        self.centres.index_add_(0, labels, (features - self.centres[labels]) / alike, alpha=0.1)

    def _embed(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.discriminants(self.features(pixels)))

    def _empty_sums(self) -> None:
        self.train_images = 0
        self.train_loss, self.train_right = torch.zeros(2, dtype=torch.float32, device=self.device).unbind()

    def _see(self, batch: tuple[Tensor, ...]) -> Tensor:
        images, labels, *rest = batch
        embeddings = self(images)
        if not rest:  # data of others, in which nobody is enrolled
            first = sum(len(part[1]) for part in self.seen)
            places = torch.arange(len(labels)) + first
            rest = [places * self.trainer.world_size + self.global_rank, torch.zeros_like(labels, dtype=torch.bool)]
        self.seen.append(tuple(part.cpu() for part in (embeddings, labels, *rest)))
        return embeddings

    def _compare(self, stage: str) -> None:
        seen, self.seen = [list(self.seen)], []
        if self.trainer.sanity_checking:
            return
        if self.trainer.world_size > 1:
            seen = gathered(seen, self.trainer.world_size)
        parts = [part for process in seen for part in process]
        self.evaluation = verification.evaluation(*map(torch.cat, zip(*parts, strict=True)))
        pairs = getattr(self.trainer.datamodule, "pairs", None) if stage == "test" else None
        for name, value in verification.figures(self.evaluation, pairs).items():
            self.log(f"{stage}/{name}", value, sync_dist=True, prog_bar=name in ("eer", "rank_1"))
        if stage == "val" and len(self.evaluation.impostor):
            self.threshold.fill_(verification.threshold_at(self.evaluation.impostor, 1e-2))
            if self.centres is not None and not self.evaluation.enrolled.any():
                people = F.normalize(self.discriminants(self.centres)).cpu()
                strangers = verification.stranger_similarities(self.evaluation, people)
                self.stranger_threshold.fill_(verification.threshold_at(strangers, 1e-2))
