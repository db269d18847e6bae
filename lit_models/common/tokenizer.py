"""Text to tokens and back: bytes, characters, or pairs of bytes that were merged."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from lit_models.common.messages import require_extra

if TYPE_CHECKING:
    from tokenizers import Tokenizer as BytePairs

Vocabulary = dict[str, str] | None  # None for bytes; {"characters": "abc"}; {"bpe": the JSON of the library tokenizers}


class Tokenizer:
    """Text to numbers from 0 to below `size`, and back.

    Args:
        vocabulary: None for the 256 bytes of UTF-8, which know any text; `{"characters": ...}`, all of them in order;
            or `{"bpe": ...}`, byte-pair encoding as the library tokenizers writes it (extra `text`).
    """

    def __init__(self, vocabulary: Vocabulary = None) -> None:
        self.vocabulary = vocabulary
        ((self.kind, content),) = (vocabulary or {"bytes": ""}).items()
        if self.kind == "bytes":
            self.tokens = [bytes([number]) for number in range(256)]
        elif self.kind == "characters":
            self.tokens = [character.encode() for character in content]
            self.numbers = {character: number for number, character in enumerate(content)}
        else:
            self.pairs = byte_pairs(content)
            letters = {letter: byte for byte, letter in byte_letters().items()}
            names = sorted(json.loads(content)["model"]["vocab"].items(), key=lambda item: item[1])
            self.tokens = [bytes(letters[letter] for letter in name) for name, _ in names]
        self.size = len(self.tokens)

    def encode(self, text: str) -> np.ndarray:
        """Tokens `(count,)` of a text; a ValueError names characters that are not in the vocabulary."""
        if self.kind == "bytes":
            return np.frombuffer(text.encode(), dtype=np.uint8)
        if self.kind == "bpe":
            return np.array(self.pairs.encode(text).ids, dtype=self.dtype)
        if unknown := sorted(set(text) - self.numbers.keys()):
            known = "".join(self.numbers)
            raise ValueError(f"not in the vocabulary: {' '.join(map(repr, unknown[:10]))}; it has {known!r}")
        return np.array([self.numbers[character] for character in text], dtype=self.dtype)

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The UTF-8 of tokens, which may end within a character."""
        return b"".join(self.tokens[token] for token in tokens)

    @property
    def dtype(self) -> type[np.integer]:
        """The smallest one that holds a token."""
        return np.uint8 if self.size <= 256 else np.uint16 if self.size <= 65536 else np.int32


def learn_vocabulary(kind: str, text: str, size: int) -> Vocabulary:
    """The vocabulary of a text: of `bytes`, of `characters`, or of `bpe`, of which `size` tokens are learnt."""
    if kind == "bytes":
        return None
    if kind == "characters":
        return {"characters": "".join(sorted(set(text)))}
    require_extra("text", "byte-pair encoding", "tokenizers")
    import tokenizers

    pairs = tokenizers.Tokenizer(tokenizers.models.BPE())
    pairs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(byte_letters().values())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    pairs.train_from_iterator(text.splitlines(keepends=True), trainer)
    return {"bpe": pairs.to_str()}


def byte_pairs(content: str) -> "BytePairs":
    """A tokenizer of the library, from its JSON."""
    require_extra("text", "byte-pair encoding", "tokenizers")
    import tokenizers

    return tokenizers.Tokenizer.from_str(content)


def byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in a vocabulary of byte pairs, as in GPT-2: itself where it can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + number) for number, byte in enumerate(others)}
