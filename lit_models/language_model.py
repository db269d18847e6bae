"""The base of all language models: cross-entropy of the next token, and text that goes on from a prompt.

Tokens `(batch, time)`, int64 -> logits of the token after each, `(batch, time, vocab_size)`.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from typing_extensions import override

from lit_models.common.arguments import AtLeastTwo, PositiveInt, check_arguments
from lit_models.common.tokenizer import Tokenizer, Vocabulary
from lit_models.module import ExportSpec, LitModule, TensorSpec
from lit_models.training.means import EpochMeans
from lit_models.training.schedule import LRSchedulerCallable
from lit_models.training.text_samples import TextSamples

Batch = tuple[Tensor, Tensor]  # tokens and the token after each, `(batch, time)`; one below 0 is not predicted
State = Any  # what a model keeps of the tokens that it has seen; None before the first


class LanguageModel(LitModule):
    """The base of the language models: a subclass adds layers, `forward` and `extend`.

    Args:
        vocab_size: Number of kinds of tokens, or more.
        context_length: Number of tokens that training looks back on.
        vocabulary: What the tokens stand for, see `lit_models.common.tokenizer`.
        optimizer: Factory: parameters -> optimizer.
        lr_scheduler: Factory: optimizer -> schedule, see `lit_models.training.schedule`.

    Raises:
        ValueError: An argument is out of range; the data's tokens are not the model's.
    """

    task = "language modeling"
    output_name = "logits"
    from_data = frozenset({"vocabulary"})

    def __init__(
        self,
        vocab_size: AtLeastTwo,
        context_length: PositiveInt,
        vocabulary: Vocabulary,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        check_arguments(LanguageModel, locals())
        self.example_input_array = torch.zeros(1, context_length, dtype=torch.int64)
        self.use_vocabulary(vocabulary, vocab_size)
        evaluated = ("loss", "bytes", "predicted")
        self.means = EpochMeans(train=("loss",), val=evaluated, test=evaluated)

    def use_vocabulary(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        """Takes over what the tokens stand for."""
        self.tokenizer = Tokenizer(vocabulary)
        if vocabulary is not None and self.tokenizer.size > vocab_size:
            raise ValueError(
                f"the text has {self.tokenizer.size:,} kinds of tokens, but vocab_size is {vocab_size:,}: set "
                f"model.vocab_size to {self.tokenizer.size}"
            )
        lengths = torch.tensor([len(token) for token in self.tokenizer.tokens], dtype=torch.float32)
        self.register_buffer("token_bytes", lengths, persistent=False)  # of each kind

    @abstractmethod
    def extend(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Logits `(batch, time, vocab_size)` of tokens after those of a state, and the state after them."""

    def generate(
        self,
        prompt: Tensor,
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[int]:
        """Tokens that go on from a prompt `(count,)`, one after the other.

        Args:
            prompt: At least one token. Of more than the context's, the last are read.
            max_tokens: How many to draw.
            temperature: Divides the logits: below 1 what is likely gets likelier, and 0 takes the likeliest.
            top_k: Draw from so many likeliest tokens alone.
            generator: What draws, on the CPU; torch's own, if not given.
        """
        known = min(self.tokenizer.size, self.hparams.vocab_size)
        if not len(prompt):
            raise ValueError("the prompt is empty: give at least one character to go on from")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature is {temperature}: it must be 0 or more")
        if top_k is not None and not 1 <= top_k <= known:
            raise ValueError(f"top_k is {top_k}: it must be 1 to {known:,}, the number of kinds of tokens")
        prompt = prompt[None, -self.hparams.context_length :].to(self.device)
        return self._write(prompt, known, max_tokens, temperature, top_k, generator)

    @torch.inference_mode()
    def _write(
        self,
        new: Tensor,
        known: int,
        max_tokens: int,
        temperature: float,
        top_k: int | None,
        generator: torch.Generator | None,
    ) -> Iterator[int]:
        state = None
        for _ in range(max_tokens):
            logits, state = self.extend(new, state)
            last = logits[0, -1, :known].float().cpu()
            if temperature:
                if top_k is not None:
                    last = last.where(last >= last.topk(top_k).values[-1], -math.inf)
                token = torch.multinomial((last / temperature).softmax(dim=0), 1, generator=generator).item()
            else:
                token = last.argmax().item()
            yield token
            new = torch.tensor([[token]], device=self.device)

    @override
    def plots(self) -> list[Callback]:
        return [TextSamples()]

    def setup(self, stage: str) -> None:
        """Checks the data module's tokens against the model's, and takes over what they stand for."""
        super().setup(stage)
        data = self.trainer.datamodule
        if not hasattr(data, "vocabulary"):
            return
        if self.hparams.vocabulary is None and stage == "fit":
            self.hparams.vocabulary = data.vocabulary
        if self.hparams.vocabulary != data.vocabulary:
            raise ValueError(
                "the vocabulary of the data is another one than the model's: give the text, or the kind of tokens, "
                "that it was trained on"
            )
        if data.hparams.context_length > (length := self.hparams.context_length):
            raise ValueError(
                f"the text is cut into windows of {data.hparams.context_length:,} tokens, but context_length is "
                f"{length:,}: set model.context_length to {data.hparams.context_length}"
            )
        size = self.hparams.vocab_size
        if data.vocabulary is None and size < data.vocab_size:
            raise ValueError(f"tokens are bytes, of 256 kinds, but vocab_size is {size}: set model.vocab_size to 256")
        self.use_vocabulary(data.vocabulary, size)
        self.token_bytes = self.token_bytes.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss of a batch, in nats per token."""
        tokens, targets = batch
        loss = self.loss(tokens, targets).mean()
        self.log_loss(loss)
        self.means.update("train", targets.numel(), loss=loss.detach() * targets.numel())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds up the loss of a batch."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds up the loss of a batch."""
        self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """A row per token: the token, and the probability that the model had for it."""
        tokens, targets = batch
        counted = targets >= 0
        probability = (-self.loss(tokens, targets)).exp()[counted].tolist()
        texts = (
            self.tokenizer.tokens[token].decode("utf-8", "backslashreplace") for token in targets[counted].tolist()
        )
        return [{"token": text, "probability": value} for text, value in zip(texts, probability, strict=True)]

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The loss of each token, `(batch, time)`, in nats; 0 where none is predicted."""
        logits = self(tokens).float().transpose(1, 2)
        return F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)

    @override
    def epoch_metrics(self, stage: str) -> dict[str, Any]:
        """The loss in nats per token; of evaluations its exponential, and what a byte takes in bits."""
        metrics = super().epoch_metrics(stage)
        if "bytes" in metrics:
            nats = metrics["loss"]
            metrics["loss"] = nats / metrics.pop("predicted")
            metrics["bits_per_byte"] = nats / metrics.pop("bytes") / math.log(2)
            metrics["perplexity"] = metrics["loss"].exp()
        return metrics

    @override
    def export_spec(self) -> ExportSpec:
        """Logits from tokens, for texts of any number of tokens up to the context's."""
        size = self.hparams.vocab_size
        return ExportSpec(
            self,
            {"tokens": TensorSpec(("batch", "time"), torch.int64, count=size)},
            {self.output_name: TensorSpec(("batch", "time", size), torch.float32)},
        )

    def _evaluate(self, stage: str, batch: Batch) -> None:
        tokens, targets = batch
        counted = targets >= 0
        length = self.token_bytes.float()[targets.clamp(min=0)] * counted  # 16 bits are too few for a sum
        sums = {"loss": self.loss(tokens, targets).sum(), "bytes": length.sum(), "predicted": counted.sum()}
        self.means.update(stage, targets.numel(), **sums)  # a count by itself would wait for the device
