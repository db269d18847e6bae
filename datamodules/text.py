"""Text of any language as tokens: windows of it, and the token after each.

Legend: T - context_length.
"""

import codecs
import lzma
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from datamodules.common.base import BatchDataModule, check_fractions
from datamodules.common.samplers import EpochSampler
from datamodules.common.tensors import indices_on
from lit_models.common.arguments import AtLeastTwo, Fraction, PositiveInt, check_arguments
from lit_models.common.messages import inform
from lit_models.common.tokenizer import Tokenizer, learn_vocabulary

BUILT_IN = Path(__file__).parent / "files" / "alice.txt.xz"
KINDS = {"bytes": "bytes", "characters": "characters", "bpe": "pieces of words"}
CHUNK = 2**20  # bytes of a file that are looked at together
UNPREDICTED = -100  # a target that counts for nothing, as in `torch.nn.functional.cross_entropy`


class TextDataset(Dataset[tuple[Tensor, Tensor]]):
    """Windows of tokens `(batch, T)`, int64, and the token after each of these, `(batch, T)`.

    Args:
        tokens: `(count,)`, of any integer dtype.
        context_length: Tokens of a window, T.
        stride: Tokens from the start of a window to that of the next. With T, each token but the first is predicted
            once; where the last window is short, what it lacks is UNPREDICTED.
    """

    def __init__(self, tokens: Tensor, context_length: int, stride: int) -> None:
        self.tokens, self.context_length, self.stride = tokens, context_length, stride
        self.offsets = torch.arange(context_length + 1, device=tokens.device)

    def __len__(self) -> int:
        predicted = len(self.tokens) - 1
        if self.stride == self.context_length:
            return -(-predicted // self.stride)
        return max(0, (predicted - self.context_length) // self.stride + 1)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        tokens, targets = self.__getitems__([index])
        return tokens[0], targets[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A batch: one gather."""
        starts = indices_on(self.tokens.device, indices) * self.stride
        places = starts[:, None] + self.offsets
        tokens = self.tokens[places.clamp(max=len(self.tokens) - 1)].long()
        targets = torch.where(places[:, 1:] < len(self.tokens), tokens[:, 1:], UNPREDICTED)
        return tokens[:, :-1], targets

    def to(self, device: torch.device) -> "TextDataset":
        """The same dataset in a device's memory."""
        return TextDataset(self.tokens.to(device), self.context_length, self.stride)


class WindowSampler(EpochSampler):
    """An EpochSampler that draws the windows of an epoch with replacement: a long text has too many to shuffle."""

    @override
    def order(self, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self.dataset), (self.total_size,), generator=generator)


class TextDataModule(BatchDataModule):
    """A text, or a folder of them: windows of tokens `(batch, context_length)`, and the token after each.

    The first part of the text trains, the next validates, the last tests; no window reaches from one into another. To
    train, windows are drawn at random; to validate and test, every token but the first of a part is predicted once.

    Args:
        path: A text file, or a folder whose `.txt` files are read in the order of their names. "Alice's Adventures in
            Wonderland", which comes with the package, if not given.
        encoding: Encoding of the files. A byte-order mark of UTF-8 is left out, and each kind of line end becomes one.
        tokens: What a token is: a byte of UTF-8, a character, or a piece of a word by byte-pair encoding, which is
            learnt from the training part (extra `text`).
        vocab_size: Of byte-pair encoding: number of pieces of words, the 256 bytes among them. 1,024, if not given.
        context_length: Number of tokens that a prediction may look back on.
        windows_per_epoch: Number of windows that an epoch draws; as many as cover the training part, if not given.
        batch_size: Batch size per process.
        val_fraction: Fraction of the text for validation; 0 is none.
        test_fraction: Fraction of the text for the test.
        cache_on_device: Keep the tokens in the device's memory, and cut windows there.

    Attributes:
        vocabulary: What the tokens stand for, see `lit_models.common.tokenizer`.
        vocab_size: Number of kinds of tokens.

    Raises:
        FileNotFoundError: There is no such file, or no `.txt` file in the folder.
        ValueError: A file is empty, or no text of its encoding; a part is shorter than a window; an argument is out of
            range.
    """

    task = "language modeling"
    resume_may_change = frozenset({"path", "cache_on_device"})

    def __init__(
        self,
        path: str | None = None,
        encoding: str = "utf-8",
        tokens: Literal["bytes", "characters", "bpe"] = "bytes",
        vocab_size: PositiveInt | None = None,
        context_length: AtLeastTwo = 64,
        windows_per_epoch: PositiveInt | None = None,
        batch_size: PositiveInt = 16,
        val_fraction: Fraction = 0.1,
        test_fraction: Fraction = 0.1,
        cache_on_device: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(TextDataModule, locals())
        check_fractions(val_fraction, test_fraction)
        if vocab_size is not None and tokens != "bpe":
            raise ValueError(f"vocab_size is of byte-pair encoding, and tokens are {tokens}: leave it out")
        if vocab_size is not None and vocab_size < 256:
            raise ValueError(f"vocab_size is {vocab_size}: byte-pair encoding has the 256 bytes, so at least as many")
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ValueError(f"encoding is {encoding!r}, which Python does not know: utf-8, latin-1, cp1252?") from None
        self.save_hyperparameters(logger=False)

    @override
    def setup(self, stage: str) -> None:
        hp = self.hparams
        text, source = self._read()
        count = len(text)
        test = count - round(count * hp.test_fraction)
        bounds = [0, test - round(count * hp.val_fraction), test, count]
        # Characters that only validation or test have are known, too; pieces of words are learnt from training alone.
        learnt = text if hp.tokens == "characters" else text[: bounds[1]]
        self.vocabulary = learn_vocabulary(hp.tokens, learnt, hp.vocab_size or 1024)
        tokenizer = Tokenizer(self.vocabulary)
        self.vocab_size, needed, said = tokenizer.size, hp.context_length + 1, []
        asked = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ())
        for name, (start, end) in zip(("train", "val", "test"), pairwise(bounds), strict=True):
            part = text[start:end]
            tokens = torch.from_numpy(tokenizer.encode(part) if isinstance(part, str) else part)
            left_out = stage == "fit" and name == "val" and not len(part)
            if name in asked and len(tokens) < needed and not left_out:
                raise ValueError(
                    f"{source}: {len(tokens):,} tokens to {name.replace('val', 'validate')} on, fewer than a window of "
                    f"{needed:,}: give a longer text, a smaller data.context_length, or other fractions"
                )
            stride = 1 if name == "train" else hp.context_length
            setattr(self, f"{name}_set", TextDataset(tokens, hp.context_length, stride))
            said.append(f"{name} {len(tokens):,}")
        inform(f"{source}: {', '.join(said)} tokens, of {self.vocab_size:,} kinds ({KINDS[hp.tokens]})")

    @override
    def sampler(self, dataset: Dataset, seed: int, epoch: int, skip: int) -> EpochSampler:
        size = self.hparams.windows_per_epoch or -(-len(dataset.tokens) // self.hparams.context_length)
        return WindowSampler(dataset, seed, epoch, skip, size=size)

    def _read(self) -> tuple[str | np.ndarray, str]:
        """The text, as bytes of UTF-8 `(count,)` if these are the tokens, and where it is from."""
        hp = self.hparams
        if hp.path is None:
            content, source = lzma.decompress(BUILT_IN.read_bytes()), "Alice's Adventures in Wonderland"
            return (as_array(content) if hp.tokens == "bytes" else content.decode("ascii")), source
        path = Path(hp.path)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*.txt") if file.is_file())
            if not files:
                raise FileNotFoundError(f"{path}: no .txt file in this folder: give a text file, or another folder")
            text = "".join(read_text(file, hp.encoding) for file in files)
            return (as_array(text.encode()) if hp.tokens == "bytes" else text), f"{path} ({len(files):,} files)"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file")
        if hp.tokens == "bytes" and (mapped := map_text(path, hp.encoding)) is not None:
            return mapped, str(path)
        text = read_text(path, hp.encoding)
        return (as_array(text.encode()) if hp.tokens == "bytes" else text), str(path)


def as_array(content: bytes) -> np.ndarray:
    """Bytes as numbers `(count,)`, uint8."""
    return np.frombuffer(bytearray(content), dtype=np.uint8)


def map_text(path: Path, encoding: str) -> np.ndarray | None:
    """The bytes of a UTF-8 file, which stay on the disk until they are used; None where they are not the text's own."""
    if codecs.lookup(encoding).name != "utf-8" or not path.stat().st_size:
        return None
    mapped = np.memmap(path, dtype=np.uint8, mode="c")
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(mapped), CHUNK):
        part = mapped[start : start + CHUNK].tobytes()
        if b"\r" in part or b"\0" in part or (not start and part.startswith(codecs.BOM_UTF8)):
            return None
        try:
            decoder.decode(part, final=start + CHUNK >= len(mapped))
        except UnicodeDecodeError:
            return None
    return mapped


def read_text(path: Path, encoding: str) -> str:
    """The text of a file, without a byte-order mark, and with one kind of line end."""
    content = path.read_bytes()
    if not content:
        raise ValueError(f"{path}: the file is empty")
    mark = codecs.BOM_UTF8 if codecs.lookup(encoding).name == "utf-8" and content.startswith(codecs.BOM_UTF8) else b""
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        found = " ".join(f"{byte:02x}" for byte in error.object[error.start : error.start + 4])
        raise ValueError(
            f"{path}: no {encoding} at byte {error.start + len(mark):,} ({found}): give its encoding with "
            "data.encoding, such as latin-1 or utf-16"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path}: no text, since it has a character 0: give another file, or data.encoding")
    return text.replace("\r\n", "\n").replace("\r", "\n")
