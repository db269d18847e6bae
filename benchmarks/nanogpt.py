"""nanoGPT's recipe for Shakespeare on a CPU, as a plain loop: the Transformer that others are compared with.

https://github.com/karpathy/nanoGPT (README, "I only have a macbook"): 4 layers of 4 heads, width 128, windows of 64
characters, batches of 12, 2,000 steps; learned positions, LayerNorm, GELU, a head tied to the embeddings, no biases.
Written anew for this benchmark, whose settings are those of `config/train_shakespeare_char.py` with the README's flags.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, STEPS, WARM_UP = 4, 4, 128, 64, 12, 2000, 100
RATE, LAST_RATE, WEIGHT_DECAY, BETAS = 1e-3, 1e-4, 0.1, (0.9, 0.99)


class Block(nn.Module):
    """Attention and MLP, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.qkv, self.output = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, time, WIDTH)` -> the same."""
        parts = self.qkv(self.norm1(x)).split(WIDTH, dim=2)
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Tokens `(batch, time)` -> logits `(batch, time, kinds)`."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(kinds, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(LAYERS))), nn.LayerNorm(WIDTH, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                branch = name.endswith(("output.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * LAYERS) if branch else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        return self.norm(self.blocks(x)) @ self.tokens.weight.T


def train(tokens: Tensor, kinds: int, seed: int) -> GPT:
    """One that has learnt from tokens `(count,)`."""
    torch.manual_seed(seed)
    model = GPT(kinds)
    decayed = [weight for weight in model.parameters() if weight.dim() == 2]
    others = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS)
    offsets = torch.arange(CONTEXT + 1)
    for step in range(STEPS):
        falling = 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))
        rate = RATE * (step + 1) / (WARM_UP + 1) if step < WARM_UP else LAST_RATE + falling * (RATE - LAST_RATE)
        for group in optimizer.param_groups:
            group["lr"] = rate
        window = tokens[torch.randint(len(tokens) - CONTEXT, (BATCH, 1)) + offsets].long()
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model
