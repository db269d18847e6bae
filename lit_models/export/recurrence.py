"""Recurrent layers as the exporters take them: any number of rows in one graph, where tracing would unroll each row.

The ONNX exporter of torch 2.14 translates GRU and LSTM itself, but declares the traced number of rows for its outputs,
of which onnxruntime warns in every run, and it has nothing for the plain cell.

Both take and return what `nn.GRU`, `nn.LSTM` and `nn.RNN` do with `batch_first`, and are for inference.

Legend: L - layers; H - width of the hidden state; G - its gates times H: 3 H for the GRU, 4 H for the LSTM, else H.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_models.layers import Hidden

WEIGHTS = ("input", "hidden", "input_bias", "hidden_bias")  # of a layer, in torch's order


class Recurrence(nn.Module, ABC):
    """Recurrent layers of one direction, with biases and `batch_first`; a subclass computes one layer."""

    def __init__(self, core: nn.RNNBase) -> None:
        super().__init__()
        self.kind, self.num_layers, self.hidden_size = core.mode.partition("_")[0], core.num_layers, core.hidden_size
        for layer, weights in enumerate(core.all_weights):
            for name, weight in zip(WEIGHTS, weights, strict=True):
                self.register_buffer(f"{name}_{layer}", self.arranged(weight.detach().clone()))

    def forward(self, x: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """Features `(batch, time, H)` of `(batch, time, features)`, and the state after the last row."""
        if hidden is None:
            zeros = x.new_zeros(self.num_layers, x.shape[0], self.hidden_size)
            hidden = (zeros, zeros.clone()) if self.kind == "LSTM" else zeros
        states = torch.stack(hidden if isinstance(hidden, tuple) else (hidden,))  # (1 or 2, L, batch, H)
        rows, last = x.transpose(0, 1), []
        for layer in range(self.num_layers):
            weights = [getattr(self, f"{name}_{layer}") for name in WEIGHTS]
            rows, state = self.layer(rows, list(states[:, layer].unbind()), weights)
            last.append(state)
        new = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
        return rows.transpose(0, 1), new if self.kind == "LSTM" else new[0]

    def arranged(self, weight: Tensor) -> Tensor:
        """A weight `(G, ...)`, its gates in the order that `layer` expects: here, torch's."""
        return weight

    @abstractmethod
    def layer(self, rows: Tensor, state: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, Iterable[Tensor]]:
        """Features `(time, batch, H)` of rows `(time, batch, features)`, and the state, each `(batch, H)`."""


class OnnxRecurrence(Recurrence):
    """The operators GRU, LSTM and RNN of ONNX, which every runtime has a fast form of."""

    def arranged(self, weight: Tensor) -> Tensor:
        """ONNX's order: update, reset, new; and input, output, forget, cell."""
        order = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2), "RNN": (0,)}[self.kind]
        gates = weight.split(self.hidden_size)
        return torch.cat([gates[gate] for gate in order])

    def layer(self, rows: Tensor, state: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, Iterable[Tensor]]:
        """One operator; its second axis is the direction."""
        time, batch, _ = rows.shape
        w_in, w_hidden, *biases = weights
        before_reset = {"linear_before_reset": 1} if self.kind == "GRU" else {}  # as torch applies the reset gate
        features, *state = torch.onnx.ops.symbolic_multi_out(
            self.kind,
            (rows, w_in[None], w_hidden[None], torch.cat(biases)[None], None, *(part[None] for part in state)),
            {"hidden_size": self.hidden_size, **before_reset},
            dtypes=[rows.dtype] * (1 + len(state)),
            shapes=[(time, 1, batch, self.hidden_size), *[(1, batch, self.hidden_size)] * len(state)],
        )
        return features.squeeze(1), [part.squeeze(0) for part in state]


class ScannedRecurrence(Recurrence):
    """The cells' equations in a loop of torch's own, for `torch.export`."""

    def layer(self, rows: Tensor, state: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, Iterable[Tensor]]:
        """A loop over the rows."""
        from torch._higher_order_ops.scan import scan  # torch has no public name for it yet

        w_in, w_hidden, b_in, b_hidden = weights

        def step(state: list[Tensor], from_x: Tensor) -> tuple[list[Tensor], Tensor]:
            hidden, from_h = state[0], F.linear(state[0], w_hidden, b_hidden)  # (batch, H), (batch, G)
            if self.kind == "GRU":
                (x_reset, x_update, x_new), (h_reset, h_update, h_new) = from_x.chunk(3, 1), from_h.chunk(3, 1)
                new = torch.tanh(x_new + torch.sigmoid(x_reset + h_reset) * h_new)
                state = [new + torch.sigmoid(x_update + h_update) * (hidden - new)]
            elif self.kind == "LSTM":
                enter, forget, new, out = (from_x + from_h).chunk(4, 1)
                cell = torch.sigmoid(forget) * state[1] + torch.sigmoid(enter) * torch.tanh(new)
                state = [torch.sigmoid(out) * torch.tanh(cell), cell]
            else:
                state = [torch.tanh(from_x + from_h)]
            return state, state[0].clone()  # what goes on and what comes out must not be one tensor

        state, features = scan(step, [part.clone() for part in state], F.linear(rows, w_in, b_in))
        return features, state
