"""A face embedder: images of one person map close together, those of different people far apart.

Images `(batch, in_channels, image_size, image_size)`, one face each -> embeddings `(batch, embedding_dim)` of length 1,
whose inner products are cosine similarities.

A backbone (`lit_models.faces.backbones`) is trained as a classifier of the people in the training data, with an
additive-margin softmax (`lit_models.faces.margins`) over a head of one row per person. Embeddings are its features
after linear discriminant analysis (`lit_models.faces.lda`), without the head.
"""

import copy
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from lit_models.common.arguments import AtLeastTwo, PositiveFloat, PositiveInt, Range, UnitInterval, check_arguments
from lit_models.faces.backbones import build_backbone
from lit_models.faces.lda import OnlineLDA
from lit_models.faces.margins import Margin, with_margin
from lit_models.faces.verification import EmbeddingCollector, VerificationResult, evaluate
from lit_models.faces.verification_plots import VerificationPlots
from lit_models.layers import channels_last
from lit_models.module import LitModule
from lit_models.training.data_checks import check_images, images_and_labels, images_and_names, people_to_train_on
from lit_models.training.means import EpochMeans
from lit_models.training.schedule import LRSchedulerCallable


class FaceEmbedder(LitModule):
    """A network from faces to embeddings, with a classification head for training.

    Validation and test compare people or images that were not trained on: verification over all pairs of images (EER,
    AUC, TAR at FAR 1e-2 and 1e-3) and closed-set identification (rank 1 and 5), see `lit_models.faces.verification`.

    Args:
        in_channels: Number of image channels: 1 for grayscale, 3 for RGB.
        image_size: Height and width of the images.
        embedding_dim: Embedding size; without `backbone` at most 775 for grayscale images, 825 for RGB. With few people
            to train on, larger embeddings separate strangers better.
        num_classes: Number of people to train on; that of the data, if not given.
        margin: "arcface" adds an angle between a feature vector and its person's row of the head, "cosface" subtracts
            from their cosine, "none" is a softmax of the cosines.
        margin_size: The angle in radians, or what is subtracted; 0.5 and 0.35, the papers', if not given.
        scale: Factor of the cosines before the softmax.
        dropout: Probability of dropping a feature in training.
        flip_average: Whether an embedding, except in training, averages the image and its mirror image.
        backbone: Name of a classification network of torchvision, such as "resnet18", instead of the one written here.
        weights: "DEFAULT" starts `backbone` from torchvision's weights, which are downloaded once.
        optimizer: Factory: parameters -> optimizer.
        lr_scheduler: Factory: optimizer -> schedule, see `lit_models.training.schedule`.

    Attributes:
        threshold: Verification threshold: FAR 1% on validation pairs; infinite before the first validation.
        stranger_threshold: Open-set identification threshold: FAR 1% on validation images, each against everybody
            trained on and everybody else in validation; infinite before the first validation on new people.
        prototypes: `(num_classes, features)`, running mean of the features of each person trained on.
        result: The comparisons of the last validation or test.

    Raises:
        ValueError: An argument is out of range, or the data don't fit; torchvision has no such network, or its last
            layer is not linear.
        ConnectionError: The weights could not be downloaded.
    """

    task = "face recognition"
    data_tasks = frozenset({"classification"})  # of people, or of anything else to be told apart
    output_name = "embeddings"
    shown_metrics = ("loss", "accuracy", "eer", "rank_1")
    from_data = frozenset({"num_classes"})
    resume_may_change = frozenset({"weights"})  # the checkpoint has its own

    def __init__(
        self,
        in_channels: Literal[1, 3] = 1,
        image_size: Annotated[int, Range(32)] = 48,
        embedding_dim: PositiveInt = 128,
        num_classes: AtLeastTwo | None = None,
        margin: Margin = "cosface",
        margin_size: Annotated[float, Range(0)] | None = None,
        scale: PositiveFloat = 24.0,
        dropout: UnitInterval = 0.2,
        flip_average: bool = True,
        backbone: str | None = None,
        weights: Literal["DEFAULT"] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=2e-3, weight_decay=0.05),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        check_arguments(FaceEmbedder, locals())
        if margin == "none" and margin_size:
            raise ValueError(f"margin_size is {margin_size}, but margin is none: leave it out, or choose a margin")
        self.network, features = build_backbone(backbone, weights, in_channels, image_size, embedding_dim)
        self.lda = OnlineLDA(features, embedding_dim)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.hparams.weights = None  # those it started from are in every checkpoint
        self.in_channels, self.image_size, self.sizes = in_channels, image_size, range(image_size, image_size + 1)
        self.register_parameter("head", None)
        self.register_buffer("prototypes", None)
        if num_classes is not None:
            self._add_head(num_classes)
        self.register_buffer("threshold", torch.tensor(float("inf")))
        self.register_buffer("stranger_threshold", torch.tensor(float("inf")))
        self.example_input_array = torch.zeros(1, in_channels, image_size, image_size, dtype=torch.uint8)
        self.means = EpochMeans(train=("loss", "accuracy"))
        self.collector = EmbeddingCollector()
        self.result: VerificationResult | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings `(batch, embedding_dim)`, float32, of length 1, of images uint8 in 0..255 or float in 0..1."""
        pixels = self.normalize(images)
        embeddings = F.normalize(self.lda(self.network(pixels)))
        if self.training or not self.hparams.flip_average:
            return embeddings
        mirrored = F.normalize(self.lda(self.network(pixels.flip(3))))
        return F.normalize(embeddings + mirrored)

    def normalize(self, images: Tensor) -> Tensor:
        """Input of the network: images with mean 0 and standard deviation 1 each, against light and contrast."""
        if not torch.jit.is_tracing():  # which has no numbers to compare, and warns
            check_images(self, images.shape)
        pixels = images.float() if images.is_floating_point() else images.float() / 255
        pixels = pixels - pixels.mean(dim=(1, 2, 3), keepdim=True)
        std = pixels.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        pixels = (pixels / (std + 1e-3)).to(next(self.network.parameters()).dtype)
        return channels_last(pixels.expand(-1, 3, -1, -1)) if self.hparams.backbone else pixels

    @override
    def plots(self) -> list[Callback]:
        return [VerificationPlots()]

    def setup(self, stage: str) -> None:
        """Sizes the head for the people in the data."""
        super().setup(stage)
        if stage == "fit":
            self.hparams.num_classes = people_to_train_on(self, self.trainer.datamodule)
            if self.head is None:
                self._add_head(self.hparams.num_classes)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch `(images, labels)`, labels in 0..num_classes - 1."""
        images, labels = images_and_labels(self, batch)
        if len(labels) < 2:  # which batch normalization doesn't take
            raise ValueError(
                "a training batch has 1 image, but takes 2 at least: raise data.identities_per_batch or "
                "data.images_per_identity, or set drop_last in a loader of your own"
            )
        features = self.network(self.normalize(images))  # (batch, features)
        self.lda.update(features.detach(), labels)
        same = (labels[:, None] == labels).sum(dim=1, keepdim=True)  # images of each one's person
        try:
            changes = (features.detach().float() - self.prototypes[labels]) / same
            self.prototypes.index_add_(0, labels, changes, alpha=0.1)
        except IndexError as error:  # how the CPU reports a label out of range
            raise ValueError(f"{error}; the model has num_classes={len(self.head)}: labels start at 0") from error
        dropped = F.normalize(F.dropout(features, self.hparams.dropout).float())
        cosines = F.linear(dropped, F.normalize(self.head.float()))  # (batch, num_classes)
        reduced = with_margin(cosines, labels, self.hparams.margin, self.hparams.margin_size)
        loss = F.cross_entropy(self.hparams.scale * reduced, labels)
        right = (cosines.argmax(dim=1) == labels).sum()  # without the margin
        self.means.update("train", len(labels), loss=loss.detach() * len(labels), accuracy=right)
        self.log_loss(loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """The embeddings of a batch `(images, labels)`, or with enrolled ones `(images, labels, indices, enrolled)`."""
        more = batch[2:] if isinstance(batch, list | tuple) and len(batch) == 4 else ()
        images, labels = images_and_labels(self, batch[:2] if more else batch)
        embeddings = self(images)
        self.collector.update(self.trainer, batch_idx, embeddings, labels, *more)
        return embeddings

    test_step = validation_step

    @override
    def epoch_metrics(self, stage: str) -> dict[str, Any]:
        return super().epoch_metrics(stage) if stage == "train" else evaluate(self, stage)

    def predict_step(self, batch: Tensor | tuple[Tensor, Any], batch_idx: int) -> list[dict[str, Any]]:
        """One row per image: `file`, `label` or nothing, whichever comes with it, and the embedding's numbers."""
        images, names = images_and_names(self, batch)
        rows = [dict(enumerate(row)) for row in self(images).tolist()]
        if names is None:
            return rows
        key, names = ("label", names.tolist()) if isinstance(names, Tensor) else ("file", names)
        return [{key: name} | row for name, row in zip(names, rows, strict=True)]

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.head is None and (head := checkpoint["state_dict"].get("head")) is not None:
            self._add_head(len(head))

    @override
    def for_inference(self) -> "FaceEmbedder":
        model = copy.deepcopy(self)
        model.head, model.prototypes, model.hparams.num_classes = None, None, None
        return model

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FaceEmbedder":
        kept = dict(self.named_buffers(recurse=False))  # thresholds, prototypes: 16 bits are too few, so never cast
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    def _add_head(self, people: int) -> None:
        features = len(self.lda.projection)
        self.head = nn.Parameter(nn.init.xavier_normal_(torch.empty(people, features)))
        self.prototypes = torch.zeros(people, features, dtype=torch.float32)
