"""Text: how it is read, cut into windows and parts, and what is refused."""

import numpy as np
import pytest
import torch

from datamodules import TextDataModule
from lit_models.common.tokenizer import Tokenizer, byte_letters, learn_vocabulary

VERSE = "Twinkle, twinkle, little bat!\nHow I wonder what you're at!\n" * 20


def write(folder, content, name="text.txt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def made(path, stage="fit", **options):
    data = TextDataModule(path, **{"context_length": 8, "batch_size": 4} | options)
    data.setup(stage)
    return data


def text_of(data, tokens):
    return Tokenizer(data.vocabulary).decode(tokens.tolist()).decode()


def test_built_in_text():
    data = TextDataModule(context_length=32)
    data.setup("fit")
    assert data.vocab_size == 256
    assert b"Down the Rabbit-Hole".upper() in bytes(data.train_set.tokens.tolist()).upper()
    assert bytes(data.test_set.tokens.tolist()).endswith(b"THE END\n")


@pytest.mark.parametrize("kind", ["bytes", "characters"])
def test_parts_follow_each_other_without_a_gap(kind, tmp_path):
    data = made(write(tmp_path, VERSE), tokens=kind, val_fraction=0.2, test_fraction=0.1)
    parts = [text_of(data, part.tokens) for part in (data.train_set, data.val_set, data.test_set)]
    assert "".join(parts) == VERSE
    assert [len(part) for part in parts] == [826, 236, 118]


def test_a_target_is_the_token_after():
    data = TextDataModule(context_length=16, batch_size=8)
    data.setup("fit")
    tokens, targets = next(iter(data.train_dataloader()))
    assert tokens.shape == targets.shape == (8, 16)
    assert tokens.dtype == targets.dtype == torch.int64
    assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_training_windows_stay_within_their_part(tmp_path):
    content = "a" * 800 + "b" * 100 + "c" * 100
    data = made(write(tmp_path, content), windows_per_epoch=4000)
    for tokens, targets in data.train_dataloader():
        assert {*tokens.unique().tolist(), *targets.unique().tolist()} == {ord("a")}


@pytest.mark.parametrize("length", [100, 97, 98, 104, 105])
def test_each_token_of_validation_but_the_first_is_predicted_once(length, tmp_path):
    numbers = np.random.default_rng(0).integers(97, 123, 800 + length).astype(np.uint8)
    data = made(write(tmp_path, numbers.tobytes()), val_fraction=length / (800 + length), test_fraction=0)
    own = numbers[-length:].tolist()
    assert data.val_set.tokens.tolist() == own
    found = [target for _, targets in data.val_dataloader() for target in targets.flatten().tolist()]
    assert [target for target in found if target >= 0] == own[1:]
    for tokens, targets in data.val_dataloader():  # and from what stood before it
        for row, after in zip(tokens.tolist(), targets.tolist(), strict=True):
            known = sum(target >= 0 for target in after)
            assert row[1:known] == after[: known - 1]


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffno\nsh\n".encode(),
        b"no\r\nsh\r\n",
        b"no\rsh\n",
        b"no\nsh\n",
    ],
    ids=["mark", "CRLF", "mixed", "plain"],
)
def test_marks_and_line_ends_are_no_part_of_the_text(content, tmp_path):
    data = made(write(tmp_path, content), context_length=2, val_fraction=0, test_fraction=0)
    assert text_of(data, data.train_set.tokens) == "no\nsh\n"


def test_other_encodings(tmp_path):
    for encoding in ("latin-1", "utf-16", "cp1252"):
        path = write(tmp_path, "naïve café\n".encode(encoding))
        data = made(path, context_length=2, encoding=encoding, val_fraction=0, test_fraction=0)
        assert text_of(data, data.train_set.tokens) == "naïve café\n"


def test_files_of_a_folder_follow_each_other(tmp_path):
    for name, content in (("b.txt", "two"), ("a.txt", "one"), ("c.md", "three")):
        write(tmp_path, content, name)
    data = made(str(tmp_path), context_length=2, val_fraction=0, test_fraction=0)
    assert text_of(data, data.train_set.tokens) == "onetwo"


def test_a_file_of_bytes_is_mapped_and_not_changed(tmp_path):
    path = write(tmp_path, VERSE)
    data = made(path, val_fraction=0, test_fraction=0)
    data.train_set.tokens[:4] = 0
    assert (tmp_path / "text.txt").read_text() == VERSE


def test_characters_of_all_parts_are_known(tmp_path):
    data = made(write(tmp_path, "ab" * 450 + "z" * 100), tokens="characters")
    assert data.vocabulary == {"characters": "abz"}
    assert data.vocab_size == 3


def test_byte_pairs_give_back_any_text(tmp_path):
    pytest.importorskip("tokenizers", reason="the extra text is not installed")
    vocabulary = learn_vocabulary("bpe", VERSE, 300)
    tokenizer = Tokenizer(vocabulary)
    assert tokenizer.size <= 300
    for text in (VERSE, "naïve 東京 \U0001f600\n\t ", ""):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens.tolist()).decode() == text
    assert len(tokenizer.encode(VERSE)) < len(VERSE) / 2
    data = made(write(tmp_path, VERSE), tokens="bpe", vocab_size=300)
    train = text_of(data, data.train_set.tokens)
    assert VERSE.startswith(train)
    assert data.vocabulary == learn_vocabulary("bpe", train, 300)


def test_every_byte_has_a_letter_of_its_own():
    letters = byte_letters()
    assert sorted(letters) == list(range(256))
    assert len(set(letters.values())) == 256
    assert all(letter.isprintable() and not letter.isspace() for letter in letters.values())


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "the file is empty"),
        ("too short", {}, "tokens to train on, fewer than a window of 9"),
        (VERSE[:60], {"val_fraction": 0.1}, "6 tokens to validate on, fewer than a window of 9"),
        (VERSE.encode() + b"\xff\xfe!", {}, "no utf-8 at byte 1,180 (ff fe 21): give its encoding with data.encoding"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", {"encoding": "latin-1"}, "no text, since it has a character 0"),
        (VERSE, {"encoding": "utf-9"}, "encoding is 'utf-9', which Python does not know"),
        (VERSE, {"tokens": "bpe", "vocab_size": 100}, "vocab_size is 100: byte-pair encoding has the 256 bytes"),
        (VERSE, {"vocab_size": 300}, "vocab_size is of byte-pair encoding, and tokens are bytes: leave it out"),
        (VERSE, {"context_length": 1}, "context_length is 1: it must be at least 2"),
        (VERSE, {"val_fraction": 0.5, "test_fraction": 0.5}, "together they must be below 1"),
    ],
)
def test_what_is_refused(content, options, message, tmp_path):
    with pytest.raises(ValueError, match=r".") as error:
        made(write(tmp_path, content), **options)
    assert message in str(error.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        made(str(tmp_path / "none.txt"))
    with pytest.raises(FileNotFoundError, match=r"no .txt file in this folder"):
        made(str(tmp_path))
