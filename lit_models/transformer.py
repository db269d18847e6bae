"""The Transformer as a language model: each token looks back on those before it.

Tokens `(batch, time)`, int64 -> logits of the token after each, `(batch, time, vocab_size)`.

The decoder of Vaswani et al. 2017, "Attention is all you need" (https://arxiv.org/abs/1706.03762), as it is built
today: normalized before attention and MLP, with rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864),
normalized queries and keys (Henry et al. 2020, https://arxiv.org/abs/2010.04245), RMSNorm (Zhang and Sennrich 2019,
https://arxiv.org/abs/1910.07467) and a squared ReLU (So et al. 2021, https://arxiv.org/abs/2109.08668). Each is a
keyword; GPT-2 is the other choice of all.

Legend: head_dim - dim / heads; seen - tokens before the new ones.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from lit_models.common.arguments import AtLeastTwo, PositiveFloat, PositiveInt, UnitInterval, check_arguments
from lit_models.common.tokenizer import Vocabulary
from lit_models.language_model import LanguageModel
from lit_models.training.attention_plots import TextAttentionPlots
from lit_models.training.optimizers import CombinedOptimizer
from lit_models.training.schedule import LRSchedulerCallable, optimizer_and_schedule

Past = tuple[Tensor, Tensor]  # keys and values `(batch, heads, seen, head_dim)` of a block
Rotation = tuple[Tensor, Tensor] | None  # cosines and sines `(time, head_dim / 2)`; None with learned positions


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns pairs of features of `(..., time, head_dim)` by an angle that grows with the position.

    The product of two vectors that were turned depends on the distance of their positions alone.
    """
    if rotation is None:
        return x
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def rotation_of(place: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines for places `(time,)`: the first pair of features turns fastest."""
    frequency = 10_000 ** -(torch.arange(head_dim // 2, device=place.device) / (head_dim // 2))
    angle = place[:, None] * frequency  # (time, head_dim / 2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


class Attention(nn.Module):
    """Every token asks those before it and itself (queries and keys), and takes a weighted mean of their values."""

    def __init__(self, dim: int, heads: int, qk_norm: bool, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.qk_norm, self.dropout = heads, qk_norm, dropout
        self.qkv, self.output = nn.Linear(dim, 3 * dim, bias), nn.Linear(dim, dim, bias)

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `(batch, heads, time, head_dim)` of tokens `(batch, time, dim)`."""
        both, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).split([2, 1])
        if self.qk_norm:
            both = F.rms_norm(both, both.shape[4:])
        query, key = rotate(both, rotation)
        return query, key, value[0]

    def forward(self, x: Tensor, rotation: Rotation, past: Past | None) -> tuple[Tensor, Past]:
        """`(batch, time, dim)` -> the same; and the keys and values of the past and of these tokens."""
        query, key, value = self.project(x, rotation)
        mask = None
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
            if torch.compiler.is_exporting() or x.shape[1] > 1:  # an export is of any number of tokens
                mask = torch.ones(x.shape[1], key.shape[2], dtype=torch.bool, device=x.device).tril(past[0].shape[2])
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=past is None)
        return self.output(attended.transpose(1, 2).flatten(2)), (key, value)

    def weights(self, x: Tensor, rotation: Rotation) -> Tensor:
        """How much each token takes of each before it, `(batch, heads, time, time)`; rows sum to 1."""
        query, key, _ = self.project(x, rotation)
        scores = query @ key.transpose(2, 3) / math.sqrt(key.shape[3])
        later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -math.inf).softmax(dim=3)


class SquaredReLU(nn.Module):
    """The square of what is positive."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return F.relu(x).square()


class Block(nn.Module):
    """Attention to what came before, then an MLP on each token, both added to what comes in."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float,
        norm: Literal["rms", "layer"],
        activation: Literal["squared_relu", "gelu"],
        qk_norm: bool,
        bias: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = make_norm(norm, dim, bias), make_norm(norm, dim, bias)
        self.attention = Attention(dim, heads, qk_norm, bias, dropout)
        hidden = round(dim * mlp_ratio)
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden, bias),
            SquaredReLU() if activation == "squared_relu" else nn.GELU(approximate="tanh"),
            nn.Linear(hidden, dim, bias),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotation: Rotation, past: Past | None) -> tuple[Tensor, Past]:
        """`(batch, time, dim)` -> the same; and the keys and values so far."""
        attended, past = self.attention(self.norm1(x), rotation, past)
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.norm2(x))), past


class Transformer(LanguageModel):
    """Embeddings, blocks of causal attention, and a linear layer.

    GPT-2 small is `Transformer(vocab_size=50257, context_length=1024, dim=768, depth=12, heads=12,
    positions="learned", norm="layer", activation="gelu", qk_norm=False, tie_head=True, bias=True, dropout=0.1)`.

    Args:
        vocab_size: Number of kinds of tokens, or more: 256 of bytes; the data module says that of others.
        context_length: Number of tokens that a prediction may look back on: the data module's windows.
        dim: Width of a token.
        depth: Number of blocks.
        heads: Attention heads of a block, which divide `dim`.
        mlp_ratio: Width of an MLP's hidden layer, over `dim`.
        positions: How tokens know their place: queries and keys that are turned by it, or learned vectors.
        norm: RMSNorm, or layer normalization.
        activation: Of the MLPs.
        qk_norm: Normalize queries and keys.
        tie_head: Let the last layer have the weights of the embeddings.
        bias: Whether linear layers and norms have one.
        dropout: Probability of dropping an embedding's feature, an attention weight, or a feature of a branch.
        vocabulary: What the tokens stand for. The data module's, if not given.
        matrix_optimizer: Factory of the optimizer of the matrices in the blocks, such as `torch.optim.Muon`; then
            `optimizer` is of all other parameters. One schedule drives both.
        optimizer: Factory: parameters -> optimizer.
        lr_scheduler: Factory: optimizer -> schedule. OneCycleLR rises to the optimizer's `lr`, and steps with the
            optimizer, as others do that take `total_steps` where none are given; the rest step after every epoch.

    Raises:
        ValueError: `heads` do not divide `dim`, or what they leave is odd, which rotary positions cannot be; an
            argument is out of range.
    """

    def __init__(
        self,
        vocab_size: AtLeastTwo = 256,
        context_length: PositiveInt = 64,
        dim: PositiveInt = 128,
        depth: PositiveInt = 4,
        heads: PositiveInt = 4,
        mlp_ratio: PositiveFloat = 4.0,
        positions: Literal["rotary", "learned"] = "rotary",
        norm: Literal["rms", "layer"] = "rms",
        activation: Literal["squared_relu", "gelu"] = "squared_relu",
        qk_norm: bool = True,
        tie_head: bool = False,
        bias: bool = False,
        dropout: UnitInterval = 0.0,
        vocabulary: Vocabulary = None,
        matrix_optimizer: OptimizerCallable | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=3e-3, betas=(0.9, 0.95)),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(vocab_size, context_length, vocabulary, optimizer, lr_scheduler)
        check_arguments(Transformer, locals())
        check_heads(dim, heads, positions == "rotary")
        self.save_hyperparameters(ignore=["optimizer", "matrix_optimizer", "lr_scheduler"])
        self.matrix_optimizer = matrix_optimizer
        self.embedding = nn.Embedding(vocab_size, dim)
        self.positions = nn.Parameter(torch.empty(context_length, dim)) if positions == "learned" else None
        self.dropout = nn.Dropout(dropout)
        options = (mlp_ratio, norm, activation, qk_norm, bias, dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, *options) for _ in range(depth))
        self.norm = make_norm(norm, dim, bias)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all weights anew: branches end in zeros, so that a block begins as the identity."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02 if isinstance(layer, nn.Embedding) else layer.in_features**-0.5)
            if getattr(layer, "bias", None) is not None:
                nn.init.zeros_(layer.bias)
        for block in self.blocks:
            nn.init.zeros_(block.attention.output.weight)
            nn.init.zeros_(block.mlp[2].weight)
        if self.positions is not None:
            nn.init.normal_(self.positions, std=0.02)
        if self.hparams.tie_head:
            self.head.weight = self.embedding.weight
        else:
            nn.init.zeros_(self.head.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `(batch, time, vocab_size)` of the token after each of `(batch, time)`, at most the context's."""
        return self._logits(tokens, 0, None)[0]

    @override
    def extend(
        self, tokens: Tensor, state: tuple[Tensor, list[Past]] | None = None
    ) -> tuple[Tensor, tuple[Tensor, list[Past]]]:
        """Logits of tokens after those of a state, and the state; what does not fit into the context slides out.

        So that not every token has all others computed anew, half of the context is left free then.
        """
        seen, cache = state or (tokens[:, :0], None)
        together = torch.cat([seen, tokens], dim=1)
        if cache is not None and together.shape[1] <= self.hparams.context_length:
            logits, cache = self._logits(tokens, seen.shape[1], cache)
            return logits, (together, cache)
        kept = together if cache is None else together[:, -max(self.hparams.context_length // 2, tokens.shape[1]) :]
        logits, cache = self._logits(kept, 0, None)
        return logits[:, -tokens.shape[1] :], (kept, cache)

    @override
    def configure_optimizers(self) -> dict:
        if self.matrix_optimizer is None:
            return super().configure_optimizers()
        matrices = [parameter for parameter in self.blocks.parameters() if parameter.dim() == 2]
        others = [parameter for parameter in self.parameters() if not any(parameter is one for one in matrices)]
        both = CombinedOptimizer(self.matrix_optimizer(matrices), self.optimizer(others))
        return optimizer_and_schedule(self, (), lambda _: both, self.lr_scheduler)

    @override
    def plots(self) -> list[Callback]:
        return [*super().plots(), TextAttentionPlots()]

    @torch.no_grad()
    def attention(self, tokens: Tensor) -> Tensor:
        """Attention weights `(depth, batch, heads, time, time)` for tokens: rows take from columns."""
        (x, rotation), found = self._embedded(tokens, 0), []
        for block in self.blocks:
            found.append(block.attention.weights(block.norm1(x), rotation))
            x, _ = block(x, rotation, None)
        return torch.stack(found)

    def _embedded(self, tokens: Tensor, seen: int) -> tuple[Tensor, Rotation]:
        """What the blocks begin with, `(batch, time, dim)`, and how their queries and keys are turned."""
        x = self.embedding(tokens)
        place = torch.arange(seen, seen + tokens.shape[1], device=x.device)  # (time,)
        if self.positions is not None:
            return self.dropout(x + self.positions[place]), None
        return self.dropout(x), rotation_of(place, self.hparams.dim // self.hparams.heads, x.dtype)

    def _logits(self, tokens: Tensor, seen: int, cache: list[Past] | None) -> tuple[Tensor, list[Past]]:
        (x, rotation), new = self._embedded(tokens, seen), []
        for number, block in enumerate(self.blocks):
            x, past = block(x, rotation, None if cache is None else cache[number])
            new.append(past)
        return self.head(self.norm(x)), new


def check_heads(dim: int, heads: int, rotary: bool = True) -> None:
    """Raises a ValueError where heads do not divide a width, or leave what cannot be turned in pairs."""
    if dim % heads:
        raise ValueError(f"dim is {dim}, which {heads} heads do not divide: set dim to {heads * -(-dim // heads)}")
    if rotary and (dim // heads) % 2:
        raise ValueError(f"dim is {dim}, {dim // heads} for each head: rotary positions need an even number")


def make_norm(norm: Literal["rms", "layer"], dim: int, bias: bool) -> nn.Module:
    """A normalization of features `(..., dim)`."""
    return nn.RMSNorm(dim) if norm == "rms" else nn.LayerNorm(dim, bias=bias)
