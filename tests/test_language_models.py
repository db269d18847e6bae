"""Transformer and RNNLanguageModel: against other implementations, what they see, what they write, what is refused."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim import Muon

from datamodules import TextDataModule
from lit_models import RNNLanguageModel, Transformer
from lit_models.training.optimizers import CombinedOptimizer
from lit_models.training.schedule import OneCycleLR

SMALL = {"vocab_size": 11, "context_length": 12, "dim": 16, "depth": 2, "heads": 2}
GPT2 = {"positions": "learned", "norm": "layer", "activation": "gelu", "qk_norm": False, "tie_head": True, "bias": True}


@pytest.fixture(autouse=True)
def seeded():
    seed_everything(0)


def drawn(model):
    """A model whose weights are all drawn, none of them zero."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def models():
    return {
        "rotary": lambda: Transformer(**SMALL),
        "gpt2": lambda: Transformer(**SMALL, **GPT2),
        "gru": lambda: RNNLanguageModel(11, 12, 8, "gru", 16),
        "lstm": lambda: RNNLanguageModel(11, 12, 8, "lstm", 16, num_layers=2),
    }


@pytest.fixture(params=models())
def model(request):
    return drawn(models()[request.param]())


def tokens(count, time):
    return torch.randint(11, (count, time))


def test_gpt2_against_torchs_encoder():
    model = drawn(Transformer(**SMALL, **GPT2))
    layer = nn.TransformerEncoderLayer(
        16, 2, 64, 0.0, lambda x: F.gelu(x, approximate="tanh"), batch_first=True, norm_first=True
    )
    other = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False).eval()
    names = {"self_attn.in_proj_": "attention.qkv.", "self_attn.out_proj.": "attention.output.", "linear1.": "mlp.0."}
    names |= {"linear2.": "mlp.2.", "norm1.": "norm1.", "norm2.": "norm2."}
    state = {"norm.weight": model.norm.weight, "norm.bias": model.norm.bias}
    for number, block in enumerate(model.blocks):
        own = dict(block.named_parameters())
        for theirs, ours in names.items():
            state |= {f"layers.{number}.{theirs}{kind}": own[f"{ours}{kind}"] for kind in ("weight", "bias")}
    other.load_state_dict({name: value.detach() for name, value in state.items()})
    x = tokens(3, 9)
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    features = other(model.embedding(x) + model.positions[:9], mask=mask, is_causal=True)
    torch.testing.assert_close(model(x), features @ model.embedding.weight.T, atol=1e-4, rtol=1e-3)


def test_rotary_against_complex_numbers():
    """Rotary positions, normalized queries and keys, RMSNorm and squared ReLU, written out a second time."""
    model, x = drawn(Transformer(**SMALL)), tokens(2, 7)

    def norm(x, weight=1.0):
        return x / (x.square().mean(dim=-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() * weight

    h = model.embedding.weight[x]
    angle = torch.arange(7)[:, None] * torch.tensor([10_000 ** (-i / 4) for i in range(4)])
    turn = torch.polar(torch.ones_like(angle), angle)
    for block in model.blocks:
        y = norm(h, block.norm1.weight) @ block.attention.qkv.weight.T
        q, k, v = (part.view(2, 7, 2, 8).transpose(1, 2) for part in y.split(16, dim=2))
        q, k = (torch.complex(*norm(part).split(4, dim=3)) * turn for part in (q, k))
        scores = (q @ k.conj().transpose(2, 3)).real / math.sqrt(8)
        scores = scores + torch.full((7, 7), -math.inf).triu(1)
        mixed = (scores.softmax(dim=3) @ v).transpose(1, 2).reshape(2, 7, 16)
        h = h + mixed @ block.attention.output.weight.T
        hidden = norm(h, block.norm2.weight) @ block.mlp[0].weight.T
        h = h + hidden.clamp(min=0) ** 2 @ block.mlp[2].weight.T
    torch.testing.assert_close(model(x), norm(h, model.norm.weight) @ model.head.weight.T, atol=1e-4, rtol=1e-3)


def test_gpt2_small_has_its_size():
    sizes = {"vocab_size": 50257, "context_length": 1024, "dim": 768, "depth": 12, "heads": 12}
    with torch.device("meta"):
        model = Transformer(**sizes, **GPT2)
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808


def test_a_later_token_changes_nothing_before_it(model):
    x = tokens(2, 12)
    changed = x.clone()
    changed[:, 7] = (x[:, 7] + 1) % 11
    before, after = model(x), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7], after[:, 7])


@pytest.mark.parametrize("parts", [[12], [1] * 12, [5, 1, 4, 2]])
def test_in_parts_as_in_one_go(parts, model):
    x, state, found = tokens(2, 12), None, []
    for part in x.split(parts, dim=1):
        logits, state = model.extend(part, state)
        found.append(logits)
    torch.testing.assert_close(torch.cat(found, dim=1), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, GPT2])
def test_beyond_its_context_the_oldest_tokens_slide_out(options):
    model = drawn(Transformer(**SMALL, **options))
    x, state = tokens(1, 30), None
    for number in range(30):
        logits, state = model.extend(x[:, number : number + 1], state)
        kept = state[0].shape[1]
        assert kept <= 12
        assert kept >= min(number + 1, 6)
        torch.testing.assert_close(
            logits[:, -1], model(x[:, number + 1 - kept : number + 1])[:, -1], atol=1e-5, rtol=1e-4
        )


def test_attention_weights_are_what_is_used():
    model = drawn(Transformer(**SMALL))
    x = tokens(2, 9)
    weights = model.attention(x)
    assert weights.shape == (2, 2, 2, 9, 9)
    assert not weights.triu(1).any()
    torch.testing.assert_close(weights.sum(dim=4), torch.ones(2, 2, 2, 9))
    h, rotation = model._embedded(x, 0)
    attention, seen = model.blocks[0].attention, model.blocks[0].norm1(h)
    mixed = (weights[0] @ attention.project(seen, rotation)[2]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.output(mixed), attention(seen, rotation, None)[0], atol=1e-5, rtol=1e-4)


def write(model, count=40, **options):
    return list(model.generate(torch.tensor([1, 2, 3]), count, generator=torch.Generator().manual_seed(0), **options))


def test_temperature_zero_takes_the_likeliest(model):
    text = [1, 2, 3]
    for _ in range(8):
        text.append(model(torch.tensor([text]))[0, -1].argmax().item())
    assert write(model, 8, temperature=0) == text[3:]


def test_the_same_seed_writes_the_same(model):
    assert write(model) == write(model)
    assert len(set(write(model, 200))) > 3


def test_top_k_never_leaves_the_k():
    model = drawn(Transformer(**SMALL | {"context_length": 64}))
    text = [1, 2, 3]
    for token in write(model, 50, top_k=2, temperature=3.0):
        assert token in model(torch.tensor([text]))[0, -1].topk(2).indices.tolist()
        text.append(token)
    assert write(model, 20, top_k=1) == write(model, 20, temperature=0)


def test_nothing_is_written_that_stands_for_nothing():
    model = drawn(Transformer(**SMALL, vocabulary={"characters": "abcd"}))
    assert set(write(model, 100, temperature=5.0)) == {0, 1, 2, 3}


def test_low_temperatures_are_nearer_to_the_likeliest():
    model = drawn(Transformer(**SMALL | {"context_length": 256}))
    losses = []
    for temperature in (0.3, 1.0, 3.0):
        text = torch.tensor([[1, 2, 3, *write(model, 200, temperature=temperature)]])
        losses.append(model.loss(text[:, :-1], text[:, 1:]).mean().item())
    assert losses == sorted(losses)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1: it must be 0 or more"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0: it must be 1 to 11"),
        ({"top_k": 12}, "top_k is 12: it must be 1 to 11"),
    ],
)
def test_sampling_that_is_refused(options, message, model):
    with pytest.raises(ValueError, match=message):
        write(model, **options)


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(ValueError, match="the prompt is empty"):
        model.generate(torch.tensor([], dtype=torch.int64), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "dim is 16, which 3 heads do not divide: set dim to 18"),
        ({"dim": 6}, "dim is 6, 3 for each head: rotary positions need an even number"),
        ({"vocab_size": 1}, "vocab_size is 1: it must be at least 2"),
        (
            {"vocabulary": {"characters": "abcdefghijkl"}},
            "the text has 12 kinds of tokens, but vocab_size is 11: set mod",
        ),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=r".") as error:
        Transformer(**SMALL | options)
    assert message in str(error.value)


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(**quiet | {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False} | options)


def test_metrics_are_of_the_whole_part():
    data = TextDataModule(context_length=64, batch_size=16, tokens="characters")
    model, running = RNNLanguageModel(72, 64, 8, hidden_dim=16), trainer(limit_train_batches=5)
    running.fit(model, datamodule=data)
    found = {name: value.item() for name, value in running.callback_metrics.items()}
    part = data.val_set.tokens.long()
    with torch.no_grad():
        nats = sum(
            F.cross_entropy(
                model(part[None, start : start + 64][:, : len(part) - 1 - start])[0], after, reduction="sum"
            )
            for start in range(0, len(part) - 1, 64)
            for after in [part[start + 1 : start + 65]]
        ) / (len(part) - 1)
    assert found["val/loss"] == pytest.approx(nats.item(), rel=1e-4)
    assert found["val/perplexity"] == pytest.approx(math.exp(nats), rel=1e-4)
    assert found["val/bits_per_byte"] == pytest.approx(nats.item() / math.log(2), rel=1e-4)  # it is ASCII


def test_longer_characters_take_more_bytes(tmp_path):
    (tmp_path / "text.txt").write_text("äö" * 600, encoding="utf-8")
    data = TextDataModule(str(tmp_path / "text.txt"), context_length=8, tokens="characters", val_fraction=0.2)
    model, running = RNNLanguageModel(2, 8, 4, hidden_dim=4), trainer(limit_train_batches=1)
    running.fit(model, datamodule=data)
    found = running.callback_metrics
    assert found["val/bits_per_byte"].item() == pytest.approx(found["val/loss"].item() / math.log(2) / 2, rel=1e-4)


def test_the_vocabulary_is_the_models_own_then(tmp_path):
    data = TextDataModule(context_length=16, tokens="characters", windows_per_epoch=32)
    model, running = RNNLanguageModel(72, 16, 4, hidden_dim=4), trainer(limit_val_batches=0)
    running.fit(model, datamodule=data)
    running.save_checkpoint(tmp_path / "model.ckpt")
    loaded = RNNLanguageModel.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("Alice")) == b"Alice"
    with pytest.raises(ValueError, match="the vocabulary of the data is another one than the model's"):
        trainer().test(loaded, datamodule=TextDataModule(context_length=16), verbose=False)


def test_too_few_kinds_of_tokens_are_refused():
    with pytest.raises(
        ValueError, match=r"tokens are bytes, of 256 kinds, but vocab_size is 72: set model.vocab_size to 256"
    ):
        trainer().fit(RNNLanguageModel(72, 16), datamodule=TextDataModule(context_length=16))
    with pytest.raises(
        ValueError, match=r"the text has 72 kinds of tokens, but vocab_size is 71: set model.vocab_size to 72"
    ):
        trainer().fit(RNNLanguageModel(71, 16), datamodule=TextDataModule(context_length=16, tokens="characters"))


def test_windows_longer_than_the_context_are_refused():
    with pytest.raises(
        ValueError, match=r"windows of 32 tokens, but context_length is 16: set model.context_length to 32"
    ):
        trainer().fit(Transformer(context_length=16, dim=16), datamodule=TextDataModule(context_length=32))


def test_two_optimizers_step_what_is_theirs():
    one, two = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
    both = CombinedOptimizer(torch.optim.SGD([one], lr=0.1), torch.optim.SGD([two], lr=1.0, momentum=0.9))
    schedule = torch.optim.lr_scheduler.LambdaLR(both, lambda step: 0.5**step)
    for _ in range(2):
        both.zero_grad()
        (one.sum() + two.sum()).backward()
        both.step()
        schedule.step()
    torch.testing.assert_close(one, torch.full((3, 3), 1 - 0.1 - 0.05))
    torch.testing.assert_close(two, torch.full((3,), 1 - 1.0 - 0.5 * 1.9))


def test_two_optimizers_go_on_where_they_were():
    def made():
        torch.manual_seed(1)
        layer = nn.Linear(4, 4)
        both = CombinedOptimizer(torch.optim.Muon([layer.weight]), torch.optim.AdamW([layer.bias]))
        return layer, both, torch.optim.lr_scheduler.LambdaLR(both, lambda step: 0.9**step)

    def train(layer, both, schedule, steps):
        for step in steps:
            both.zero_grad()
            layer(torch.full((2, 4), float(step))).square().sum().backward()
            both.step()
            schedule.step()

    first, second = made(), made()
    train(*first, range(6))
    train(*second, range(3))
    resumed = made()
    for old, new in zip(second, resumed, strict=True):
        new.load_state_dict(old.state_dict())
    train(*resumed, range(3, 6))
    assert torch.equal(first[0].weight, resumed[0].weight)
    assert torch.equal(first[0].bias, resumed[0].bias)


def test_a_resumed_run_with_two_optimizers_ends_as_one_that_was_not_stopped(tmp_path):
    def fit(name, path=None):
        seed_everything(0)
        model = Transformer(
            context_length=16,
            dim=16,
            depth=1,
            heads=2,
            matrix_optimizer=Muon,
            lr_scheduler=partial(OneCycleLR, cycle_momentum=False),
        )
        data = TextDataModule(context_length=16, windows_per_epoch=96)
        saving = ModelCheckpoint(tmp_path / name, "{epoch}", save_top_k=-1)
        trainer(max_epochs=3, limit_val_batches=0, enable_checkpointing=True, callbacks=[saving]).fit(
            model, datamodule=data, ckpt_path=path, weights_only=True
        )
        return model.state_dict()

    whole, resumed = fit("whole"), fit("resumed", tmp_path / "whole" / "epoch=0.ckpt")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_bytes_are_counted_exactly_in_16_bits():
    data = TextDataModule(context_length=64, batch_size=16)
    running = trainer(limit_train_batches=1, precision="bf16-true")
    running.fit(RNNLanguageModel(256, 64, 4, hidden_dim=4), datamodule=data)
    found = running.callback_metrics
    assert found["val/bits_per_byte"].item() == pytest.approx(found["val/loss"].item() / math.log(2), rel=1e-6)


def test_matrices_of_the_blocks_have_an_optimizer_of_their_own():
    model = Transformer(**SMALL, matrix_optimizer=torch.optim.Muon)
    model.trainer = trainer()
    of_matrices, of_others = model.configure_optimizers()["optimizer"].optimizers
    assert isinstance(of_matrices, torch.optim.Muon)
    matrices = [parameter for group in of_matrices.param_groups for parameter in group["params"]]
    others = [parameter for group in of_others.param_groups for parameter in group["params"]]
    assert len(matrices) == 2 * 4
    assert len(matrices) + len(others) == len(list(model.parameters()))
    assert any(parameter is model.embedding.weight for parameter in others)
    assert any(parameter is model.head.weight for parameter in others)


def test_tensorboard_shows_what_is_written_and_looked_back_on(tmp_path):
    data = TextDataModule(context_length=16, windows_per_epoch=32)
    model, logger = Transformer(context_length=16, dim=16, depth=2, heads=2), TensorBoardLogger(tmp_path, "", "")
    trainer(logger=logger, num_sanity_val_steps=0, limit_val_batches=2).fit(model, datamodule=data)
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    assert events.Tags()["images"] == ["val/attention"]
    (sample,) = events.Tensors("val/sample/text_summary")
    text = sample.tensor_proto.string_val[0].decode()
    draw = torch.Generator().manual_seed(0)
    written = model.tokenizer.decode(model.eval().generate(torch.tensor([10]), 200, generator=draw))
    assert "".join(text.split()) == "".join(written.decode("utf-8", "replace").split())
