"""The article's GRU as a language model: what is next depends on a hidden state that every token changes.

Tokens `(batch, time)`, int64 -> logits of the token after each, `(batch, time, vocab_size)`.

Mikolov et al. 2010, "Recurrent neural network based language model"; with the GRU of Cho et al. 2014
(https://arxiv.org/abs/1406.1078). It is trained on windows that begin with a state of zeros; to write, it keeps its
state without end.
"""

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from lit_models.common.arguments import AtLeastTwo, PositiveInt, UnitInterval, check_arguments
from lit_models.common.tokenizer import Vocabulary
from lit_models.language_model import LanguageModel
from lit_models.layers import Cell, Hidden, make_rnn
from lit_models.training.schedule import LRSchedulerCallable


class RNNLanguageModel(LanguageModel):
    """An embedding, recurrent layers, and a linear layer.

    Args:
        vocab_size: Number of kinds of tokens, or more: 256 of bytes; the data module says that of others.
        context_length: Number of tokens that training looks back on: the data module's windows.
        embedding_dim: Width of a token's embedding.
        cell: Kind of recurrent layer.
        hidden_dim: Hidden size.
        num_layers: Number of recurrent layers.
        dropout: Probability of dropping a feature after the embedding and after each recurrent layer.
        vocabulary: What the tokens stand for. The data module's, if not given.
        optimizer: Factory: parameters -> optimizer.
        lr_scheduler: Factory: optimizer -> schedule. OneCycleLR rises to the optimizer's `lr`, and steps with the
            optimizer, as others do that take `total_steps` where none are given; the rest step after every epoch.
    """

    def __init__(
        self,
        vocab_size: AtLeastTwo = 256,
        context_length: PositiveInt = 64,
        embedding_dim: PositiveInt = 64,
        cell: Cell = "gru",
        hidden_dim: PositiveInt = 256,
        num_layers: PositiveInt = 1,
        dropout: UnitInterval = 0.0,
        vocabulary: Vocabulary = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=4e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(vocab_size, context_length, vocabulary, optimizer, lr_scheduler)
        check_arguments(RNNLanguageModel, locals())
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.rnn = make_rnn(cell, embedding_dim, hidden_dim, num_layers, dropout)
        self.head = nn.Linear(hidden_dim, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `(batch, time, vocab_size)` of the token after each of `(batch, time)`."""
        return self.extend(tokens)[0]

    @override
    def extend(self, tokens: Tensor, state: Hidden | None = None) -> tuple[Tensor, Hidden]:
        features, state = self.rnn(self.dropout(self.embedding(tokens)), state)  # (batch, time, hidden_dim)
        return self.head(self.dropout(features)), state
