"""The command `generate`: text that a language model writes."""

import codecs
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch

from lit_models.common.files import atomic_write
from lit_models.common.messages import inform
from lit_models.language_model import LanguageModel
from lit_models.training.checkpoint import load
from lit_models.training.trust import Modules


def generate(
    ckpt_path: str,
    prompt: str = "\n",
    max_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 0,
    output: str | None = None,
    modules: Modules = None,
) -> None:
    """Writes a text that goes on from a prompt, with a language model.

    Args:
        ckpt_path: The checkpoint, or an export to safetensors.
        prompt: The beginning of the text; - reads it from standard input.
        max_tokens: Tokens to write.
        temperature: Below 1, what is likely gets likelier; 0 takes the likeliest.
        top_k: Draw from so many likeliest tokens alone; null from all.
        seed: Of what is drawn: the same, the same text.
        output: A file for the text. It is printed as it is written, if not given.
        modules: Modules of your own that the checkpoint may name classes of, my_module or [my_module, another].
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}: it must be at least 1")
    model = load(ckpt_path, modules=modules)
    if not isinstance(model, LanguageModel):
        raise ValueError(f"{ckpt_path} holds {type(model).__name__}, which writes no text: give a language model's")
    text = sys.stdin.read() if prompt == "-" else prompt
    try:
        tokens = torch.from_numpy(model.tokenizer.encode(text).copy()).long()
    except ValueError as error:
        raise ValueError(f"the prompt has characters that are {error}") from error
    context_length = model.hparams.context_length
    if len(tokens) > context_length:
        inform(f"the prompt has {len(tokens):,} tokens, of which the model reads the last {context_length:,}")
    known = min(top_k, model.tokenizer.size) if top_k is not None and top_k > 0 else top_k
    draw = torch.Generator().manual_seed(seed)
    written = model.generate(tokens, max_tokens, temperature, known, draw)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with opened(output) as file:
        file.write(text)
        for token in written:
            file.write(decoder.decode(model.tokenizer.decode([token])))
            file.flush()
        file.write(decoder.decode(b"", final=True))
        if output is None:
            file.write("\n")


@contextlib.contextmanager
def opened(output: str | None) -> Iterator[IO[str]]:
    """A file to write a text to, which is there when all of it is; without one, the terminal."""
    if output is None:
        yield sys.stdout
        return
    with atomic_write(Path(output), "give another --output") as partial, partial.open("w", encoding="utf-8") as file:
        yield file
