"""The command `generate`: what it writes, where, and what it refuses."""

import io
import sys
import types

import pytest
import torch
from conftest import fails
from lightning import Trainer, seed_everything

from lit_models import Net, RNNLanguageModel, Transformer
from lit_models.cli import main as cli

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def save(model, path):
    trainer = Trainer(accelerator="cpu", **QUIET)
    trainer.strategy.connect(model)
    model.trainer = trainer
    trainer.save_checkpoint(path)
    return f"--ckpt_path={path}"


@pytest.fixture
def checkpoint(tmp_path):
    """A language model of three letters."""
    seed_everything(0)
    model = Transformer(3, 8, 16, 2, 2, vocabulary={"characters": "abc"})
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return save(model, tmp_path / "model.ckpt")


def said(capsys, *arguments):
    assert cli.main(["generate", *arguments]) == 0
    return capsys.readouterr().out


def test_the_text_goes_on_from_the_prompt(checkpoint, capsys):
    text = said(capsys, checkpoint, "--prompt=abc", "--max_tokens=40")
    assert text.startswith("abc")
    assert len(text) == 3 + 40 + 1
    assert set(text.rstrip("\n")) == set("abc")
    assert text == said(capsys, checkpoint, "--prompt=abc", "--max_tokens=40")
    assert text != said(capsys, checkpoint, "--prompt=abc", "--max_tokens=40", "--seed=1")


def test_bytes_that_make_a_character_together_are_written_together(tmp_path, capsys, monkeypatch):
    class Fixed(RNNLanguageModel):
        def generate(self, *arguments):
            yield from "é!".encode()

    seed_everything(0)
    flag = save(Fixed(256, 8, 4, hidden_dim=4), tmp_path / "fixed.ckpt")
    module = types.ModuleType("fixed_model")
    module.Fixed = Fixed
    monkeypatch.setitem(sys.modules, "fixed_model", module)
    content = torch.load(tmp_path / "fixed.ckpt", weights_only=True)
    torch.save(content | {"model_class": "fixed_model.Fixed"}, tmp_path / "fixed.ckpt")
    assert said(capsys, flag, "--prompt=A caf", "--modules=fixed_model") == "A café!\n"


def test_a_file_has_the_text_alone(checkpoint, tmp_path, capsys):
    assert said(capsys, checkpoint, "--prompt=ab", "--max_tokens=5", f"--output={tmp_path / 'new' / 'text.txt'}") == ""
    assert len((tmp_path / "new" / "text.txt").read_text()) == 7


def test_the_prompt_from_standard_input(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("cab"))
    assert said(capsys, checkpoint, "--prompt=-", "--max_tokens=2").startswith("cab")


def test_a_long_prompt_is_said_to_slide(checkpoint, capsys):
    assert cli.main(["generate", checkpoint, f"--prompt={'abc' * 5}", "--max_tokens=20"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("the prompt has 15 tokens, of which the model reads the last 8") == 1
    assert printed.out.startswith("abc" * 5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt=abd?"], "the prompt has characters that are not in the vocabulary: '?' 'd'; it has 'abc'"),
        (["--prompt="], "the prompt is empty"),
        (["--prompt=a", "--temperature=-1"], "temperature is -1.0: it must be 0 or more"),
        (["--prompt=a", "--top_k=0"], "top_k is 0: it must be 1 to 3"),
        (["--prompt=a", "--max_tokens=0"], "max_tokens is 0: it must be at least 1"),
        (["--prompt=a", "--output=/proc/none/text.txt"], "give another --output"),
    ],
)
def test_what_is_refused(flags, message, checkpoint, capsys):
    assert message in fails(capsys, "generate", checkpoint, *flags)


def test_other_models_write_no_text(tmp_path, capsys):
    line = fails(capsys, "generate", save(Net(), tmp_path / "net.ckpt"), "--prompt=a")
    assert "holds Net, which writes no text: give a language model's" in line
