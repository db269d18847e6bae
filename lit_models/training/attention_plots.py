"""What attention looks at, in TensorBoard's IMAGES tab."""

from typing import TYPE_CHECKING

import torch.nn.functional as F
from lightning import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lit_models.training.data_checks import images_and_labels
from lit_models.training.plots import EvaluationPlots, holds_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 24  # tokens of a text


class ImageAttentionPlots(EvaluationPlots):
    """Draws what a Vision Transformer looks at, in the first image of a validation or test.

    `val/attention` or `test/attention` shows, for every block and head, how much the class token takes of each patch,
    or with mean pooling how much all patches together do. `val/positions` or `test/positions` shows how similar the
    vector of each position is to that of all others: a small map for each, at its own place.
    """

    task = "classification"

    @override
    def reset(self, pl_module: LightningModule) -> None:
        self.image: Tensor | None = None

    @override
    def update(self, pl_module: LightningModule, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> None:
        if self.image is None:
            self.image = images_and_labels(pl_module, batch)[0][:1]

    @override
    def draw(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> "dict[str, Figure]":
        if self.image is None or not holds_weights(trainer):
            return {}
        from lit_models.training import attention_figures as figures  # matplotlib takes half a second to import

        weights = pl_module.attention(self.image)[:, 0].float()  # (depth, heads, tokens, tokens)
        by_class = pl_module.class_token is not None
        asked = weights[:, :, 0, 1:] if by_class else weights.mean(dim=2)  # (depth, heads, patches)
        places = F.normalize(pl_module.positions.detach().float(), dim=1)  # (patches, dim)
        side = round(len(places) ** 0.5)
        shape = (side, side)
        return {
            "attention": figures.plot_image_attention(self.image[0].cpu(), asked.unflatten(2, shape).cpu()),
            "positions": figures.plot_positions((places @ places.T).unflatten(1, shape).unflatten(0, shape).cpu()),
        }


class TextAttentionPlots(EvaluationPlots):
    """Draws what a Transformer looks back on, in the first tokens of a validation or test.

    `val/attention` or `test/attention` shows, for every block and head, how much each token takes of each before it.
    """

    task = "language modeling"

    @override
    def reset(self, pl_module: LightningModule) -> None:
        self.tokens: Tensor | None = None

    @override
    def update(self, pl_module: LightningModule, outputs: None, batch: tuple[Tensor, Tensor]) -> None:
        if self.tokens is None:
            self.tokens = batch[0][:1, :SHOWN]

    @override
    def draw(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> "dict[str, Figure]":
        if self.tokens is None or not holds_weights(trainer):
            return {}
        from lit_models.training import attention_figures as figures  # matplotlib takes half a second to import

        weights = pl_module.attention(self.tokens)[:, 0].float().cpu()  # (depth, heads, time, time)
        kinds = pl_module.tokenizer.tokens
        texts = [kinds[token].decode("utf-8", "backslashreplace") for token in self.tokens[0].tolist()]
        return {"attention": figures.plot_text_attention(texts, weights)}
