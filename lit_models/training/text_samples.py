"""What a language model writes, in TensorBoard's TEXT tab."""

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lit_models.common.arguments import PositiveInt, check_arguments
from lit_models.training.internals import logged_step
from lit_models.training.plots import holds_weights, tensorboard_writers


class TextSamples(Callback):
    """Shows, after every validation, `val/sample`: how a language model goes on from the end of a line.

    Args:
        max_tokens: Length of the text.
    """

    def __init__(self, max_tokens: PositiveInt = 200) -> None:
        check_arguments(TextSamples, locals())
        self.max_tokens = max_tokens

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writers = [] if trainer.sanity_checking or not holds_weights(trainer) else tensorboard_writers(trainer)
        if not writers or not hasattr(pl_module, "generate"):
            return
        prompt = torch.from_numpy(pl_module.tokenizer.encode("\n").copy()).long()
        draw = torch.Generator().manual_seed(0)  # not the global one, whose numbers training uses
        text = pl_module.tokenizer.decode(pl_module.generate(prompt, self.max_tokens, generator=draw))
        for writer in writers:  # four blanks: TensorBoard reads Markdown, and this is code to it
            lines = text.decode("utf-8", "replace").splitlines()
            writer.add_text("val/sample", "\n".join(f"    {line}" for line in lines), logged_step(trainer))
