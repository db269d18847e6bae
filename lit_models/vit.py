"""The Vision Transformer: an image as a sequence of patches, over which blocks of attention pass information.

Images `(batch, in_channels, height, width)`, whose sides the patch divides -> logits `(batch, num_classes)`.

Dosovitskiy et al. 2021, "An image is worth 16x16 words: transformers for image recognition at scale"
(https://arxiv.org/abs/2010.11929), with the attention of Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762). The
size of the images is fixed, as in the paper, whose ViT-B/16 is `ViT(image_size=224, patch_size=16, dim=768, depth=12,
heads=12)`.

Legend: patches - (image_size / patch_size)^2; tokens - patches, and one more if the class token is read; head_dim -
dim / heads.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from lit_models.classifier import Classifier
from lit_models.common.arguments import AtLeastTwo, PositiveFloat, PositiveInt, UnitInterval, check_arguments
from lit_models.training.attention_plots import ImageAttentionPlots
from lit_models.training.plots import ClassificationPlots
from lit_models.training.schedule import LRSchedulerCallable


class Attention(nn.Module):
    """Every token asks all others (queries and keys), and takes a weighted mean of what they offer (values)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(batch, heads, tokens, head_dim)` of tokens `(batch, tokens, dim)`."""
        return self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def weights(self, x: Tensor) -> Tensor:
        """How much each token takes of each other one, `(batch, heads, tokens, tokens)`; rows sum to 1."""
        query, key, _ = self.project(x)
        return (query @ key.transpose(2, 3) / math.sqrt(key.shape[3])).softmax(dim=3)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, tokens, dim)` -> the same."""
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(*self.project(x), dropout_p=dropout)  # softmax(QK^T / sqrt(d)) V
        return self.output(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention between tokens, then an MLP on each, both added to what comes in."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float, drop_path: float) -> None:
        super().__init__()
        hidden = round(dim * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim), nn.Dropout(dropout)
        )
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, tokens, dim)` -> the same."""
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))

    def drop(self, branch: Tensor) -> Tensor:
        """Stochastic depth (Huang et al. 2016): leaves a branch out for some images of a batch, in training."""
        if not (self.training and self.drop_path):
            return branch
        kept = branch.new_empty(len(branch), 1, 1).bernoulli_(1 - self.drop_path)
        return branch * kept / (1 - self.drop_path)


class ViT(Classifier):
    """Patches, their positions, blocks of attention, and a linear layer.

    Args:
        in_channels: Number of image channels.
        num_classes: Number of classes.
        image_size: Height and width of the images.
        patch_size: Height and width of a patch, which divides the image's. Half of it means four times as many tokens.
        dim: Width of a token.
        depth: Number of blocks.
        heads: Attention heads of a block, which divide `dim`.
        mlp_ratio: Width of an MLP's hidden layer, over `dim`.
        positions: How tokens know their place: learned vectors, or fixed sines and cosines of row and column.
        pool: What the classes are read from: a token of their own, or the mean of all patches.
        dropout: Probability of dropping an attention weight, or a feature of an MLP.
        drop_path: Stochastic depth: probability of leaving out a branch of the last block for an image; it rises from
            0 at the first one.
        mean: Mean of the images in 0..1, a number or one per channel.
        std: Standard deviation of the images, likewise.
        class_names: Class names by label, for plots and predictions. The data module's, if not given.
        class_weights: Weight of each class in the training loss, or "balanced" for the inverse of its frequency.
        optimizer: Factory: parameters -> optimizer.
        lr_scheduler: Factory: optimizer -> schedule. OneCycleLR rises to the optimizer's `lr`, and steps with the
            optimizer, as others do that take `total_steps` where none are given; the rest step after every epoch.

    Raises:
        ValueError: The patch does not divide the image, or `heads` not `dim`; fixed positions need a `dim` that 4
            divides; an argument is out of range.
    """

    def __init__(
        self,
        in_channels: PositiveInt = 3,
        num_classes: AtLeastTwo = 10,
        image_size: PositiveInt = 32,
        patch_size: PositiveInt = 4,
        dim: PositiveInt = 192,
        depth: PositiveInt = 6,
        heads: PositiveInt = 3,
        mlp_ratio: PositiveFloat = 4.0,
        positions: Literal["learned", "sincos"] = "learned",
        pool: Literal["class", "mean"] = "class",
        dropout: UnitInterval = 0.0,
        drop_path: UnitInterval = 0.0,
        mean: float | list[float] = 0.0,
        std: PositiveFloat | list[PositiveFloat] = 1.0,
        class_names: list[str] | None = None,
        class_weights: Literal["balanced"] | list[PositiveFloat] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=0.05),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, mean, std, class_names, optimizer, lr_scheduler, class_weights)
        check_arguments(ViT, locals())
        if image_size % patch_size:
            fits = [str(size) for size in range(2, image_size) if image_size % size == 0]
            raise ValueError(
                f"images of {image_size} pixels are not divided by patches of {patch_size}: set patch_size to one of "
                f"{', '.join(fits) or image_size}, or give images of another size"
            )
        if dim % heads:
            raise ValueError(f"dim is {dim}, which {heads} heads do not divide: set dim to {heads * -(-dim // heads)}")
        if positions == "sincos" and dim % 4:
            raise ValueError(f"dim is {dim}: positions sincos need one that 4 divides")
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.sizes = range(image_size, image_size + 1)
        self.example_input_array = torch.zeros(1, in_channels, image_size, image_size, dtype=torch.uint8)
        side = image_size // patch_size
        self.patches = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        if positions == "learned":
            self.positions = nn.Parameter(torch.randn(side**2, dim) * 0.02)
        else:
            self.register_buffer("positions", sincos(side, dim), persistent=False)
        self.class_token = nn.Parameter(torch.randn(dim) * 0.02) if pool == "class" else None
        shares = torch.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, dropout, share) for share in shares)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        nn.init.zeros_(self.head.weight)

    @override
    def plots(self) -> list[Callback]:
        return [ClassificationPlots(), ImageAttentionPlots()]

    def tokens(self, images: Tensor) -> Tensor:
        """What the blocks begin with, `(batch, tokens, dim)`; the class token comes first."""
        x = self.patches(self.normalize(images)).flatten(2).transpose(1, 2) + self.positions  # (batch, patches, dim)
        if self.class_token is None:
            return x
        return torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(batch, num_classes)` of images `(batch, in_channels, height, width)`, uint8 or float in 0..1."""
        x = self.tokens(images)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)  # (batch, tokens, dim)
        return self.head(x.mean(dim=1) if self.class_token is None else x[:, 0])

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """Attention weights `(depth, batch, heads, tokens, tokens)` for images: rows take from columns."""
        x, found = self.tokens(images), []
        for block in self.blocks:
            found.append(block.attention.weights(block.norm1(x)))
            x = block(x)
        return torch.stack(found)


def sincos(side: int, dim: int) -> Tensor:
    """Sines and cosines `(side^2, dim)` of rows and columns, of wavelengths from 2 pi to 20,000 pi patches."""
    frequency = 10_000 ** -(torch.arange(dim // 4) / (dim // 4))
    angle = torch.arange(side)[:, None] * frequency  # (side, dim / 4)
    along = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, dim / 2)
    return torch.cat([along.repeat_interleave(side, 0), along.repeat(side, 1)], dim=1)
