"""Models of others' projects: loaded by a path alone, given other classes, and trained with a part of them frozen."""

import logging
import sys

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn
from torch.utils.data import DataLoader, StackDataset

import lit_models
from lit_models import CNN, RNN, Classifier, Net, RNNClassifier
from lit_models.training.callbacks import FreezeBackbone
from rl import DQN

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
SMALL = {"num_envs": 2, "buffer_size": 100, "learning_starts": 10, "batch_size": 8, "eval_episodes": 2}
MODELS = {
    "Net": lambda: Net(hidden_features=20, mean=0.1307, class_names=list("abcdefghij")),
    "CNN": lambda: CNN(batch_norm=True, dropout=0.5, image_size=28),
    "RNNClassifier": lambda: RNNClassifier(hidden_dim=8, num_layers=2, dropout=0.5),
    "RNN": lambda: RNN(1, 8, 1, cell="lstm", mean=3.0),
    "DQN": lambda: DQN(ema_decay=0.9, **SMALL),
}


def images(model, classes, count=12):
    draw = torch.Generator().manual_seed(0)
    shape = (count, *model.example_input_array.shape[1:])
    pictures = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    return DataLoader(StackDataset(pictures, torch.arange(count) % classes), batch_size=4)


def save(model, path):
    trainer = Trainer(accelerator="cpu", **QUIET)
    trainer.strategy.connect(model)
    model.trainer = trainer
    trainer.save_checkpoint(path)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_alone_gives_the_model(name, tmp_path):
    torch.manual_seed(0)
    model = MODELS[name]()
    if isinstance(model, DQN):
        model.env_steps = 5_000
    save(model, tmp_path / "model.ckpt")
    loaded = lit_models.load(tmp_path / "model.ckpt")
    assert type(loaded) is type(model)
    assert not any(module.training for module in loaded.modules())
    seen = model.example_input_array
    seen = (
        torch.randint(0, 256, seen.shape, dtype=seen.dtype)
        if isinstance(model, Classifier)
        else torch.randn(seen.shape)
    )
    got, want = loaded(seen), model(seen)
    assert torch.equal(*(part[0] if isinstance(part, tuple) else part for part in (got, want)))
    assert dict(loaded.hparams) == dict(model.hparams)
    assert getattr(loaded, "epsilon", None) == getattr(model, "epsilon", None)


def test_a_run_of_the_command_line_loads(last):
    loaded = lit_models.load(last)
    assert loaded.class_names == [str(digit) for digit in range(10)]


@pytest.mark.parametrize(
    ("name", "head"), [("Net", "classifier.4"), ("CNN", "classifier.2"), ("RNNClassifier", "head")]
)
def test_other_classes_get_a_fresh_head_and_it_is_said(name, head, tmp_path, caplog):
    model = save(MODELS[name](), tmp_path / "model.ckpt")
    with caplog.at_level(logging.INFO):
        loaded = lit_models.load(tmp_path / "model.ckpt", num_classes=3)
    said = [line for line in caplog.messages if "is new" in line]
    assert said == [f"{head} of lit_models.{name} is new, for 3 classes instead of 10: it is to be trained"]
    assert (loaded.num_classes, loaded.hparams.num_classes, loaded.class_names) == (3, 3, None)
    old = model.state_dict()
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, old[key]) != key.startswith(f"{head}."), key
    trainer = Trainer(max_epochs=1, accelerator="cpu", **QUIET)
    trainer.fit(loaded.train(), images(loaded, 3))
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    assert lit_models.load(tmp_path / "tuned.ckpt").num_classes == 3


def test_the_same_classes_keep_their_head_and_names(tmp_path, caplog):
    model = save(MODELS["Net"](), tmp_path / "model.ckpt")
    caplog.clear()
    loaded = lit_models.load(tmp_path / "model.ckpt", num_classes=10)
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    assert loaded.class_names == list("abcdefghij")
    assert not [line for line in caplog.messages if "is new" in line]


class Twice(Net):
    """With two layers that depend on the number of classes."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes=num_classes)
        self.second = nn.Linear(num_classes, num_classes)


class Needs(LightningModule):
    """Which can't be built from what a Net records."""

    def __init__(self, colour: str) -> None:
        super().__init__()


class NoModule:
    pass


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    path = tmp_path / "model.ckpt"
    for name in ("RNN", "DQN"):
        save(MODELS[name](), path)
        with pytest.raises(ValueError, match=f"{name}, which has no num_classes: leave it out"):
            lit_models.load(path, num_classes=3)
    save(Twice(), path)
    with pytest.raises(ValueError, match=r"\['classifier.4', 'second'\], not of one layer"):
        lit_models.load(path, num_classes=3, modules=[__name__])
    save(MODELS["Net"](), path)
    content = torch.load(path, weights_only=True)
    for changed, message in (
        ({"model_class": "gone.Net"}, "gone.Net, which cannot be imported: No module named 'gone'"),
        ({"model_class": "lit_models.Gone"}, "lit_models.Gone, which cannot be imported"),
        ({"model_class": "Net"}, "Net, which cannot be imported"),
        ({"model_class": "os.system"}, "os.system, which is not a LightningModule"),
        ({"model_class": f"{__name__}.NoModule"}, "NoModule, which is not a LightningModule"),
        ({"model_class": None}, "does not name its model's class"),
        ({"model_class": f"{__name__}.Needs"}, "does not fit .*Needs as it is now: .*'colour'"),
        (
            {"hyper_parameters": {"hidden_features": 30}},
            "does not fit lit_models.Net as it is now: size mismatch for cl",
        ),
    ):
        torch.save(content | changed, path)
        with pytest.raises(ValueError, match=message) as caught:
            lit_models.load(path, modules=[__name__, "gone", "os"])
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no checkpoint nowhere"):
        lit_models.load("nowhere")


def test_damaged_safetensors_and_those_of_others_are_one_line(tmp_path, monkeypatch):
    save_file = pytest.importorskip("safetensors.torch", reason="needs the extra export").save_file
    path = tmp_path / "weights"
    save_file({key: value.contiguous() for key, value in MODELS["Net"]().state_dict().items()}, path)
    with pytest.raises(ValueError, match="does not name its model's class"):
        lit_models.load(path)
    for size in (20, path.stat().st_size // 2):
        (tmp_path / "cut").write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match="not a safetensors file, or is cut short"):
            lit_models.load(tmp_path / "cut")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match="needs the extra export: pip install"):
        lit_models.load(path)


class FreezeOfLightning(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.features)

    def finetune_function(self, pl_module, epoch, optimizer):
        pass


class Careless(CNN):
    """Which puts all of itself into training mode after a validation."""

    def on_validation_model_train(self):
        self.train()


def batch_norms(model):
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    return [value.clone() for layer in layers for value in (layer.running_mean, layer.running_var)]


@pytest.mark.parametrize(
    ("kind", "callback", "moves"),
    [(CNN, FreezeBackbone(), False), (Careless, FreezeBackbone(), False), (CNN, FreezeOfLightning(), True)],
)
def test_statistics_of_a_frozen_backbone_do_not_move(kind, callback, moves):
    torch.manual_seed(0)
    model = kind(num_classes=3, batch_norm=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    statistics = batch_norms(model)
    loaders = images(model, 3), images(model, 3)
    Trainer(max_epochs=2, val_check_interval=1, accelerator="cpu", callbacks=[callback], **QUIET).fit(model, *loaders)
    assert all(map(torch.equal, batch_norms(model), statistics)) is not moves
    if not moves:
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert changed == {"classifier.2.weight", "classifier.2.bias"}


class Watched(RNNClassifier):
    """Which notes the modes that it trains in."""

    def training_step(self, batch, batch_idx):
        self.modes = self.training, self.rnn.training, self.dropout.training
        return super().training_step(batch, batch_idx)


def test_what_is_loaded_trains_but_for_what_is_frozen(tmp_path):
    save(Watched(hidden_dim=8), tmp_path / "model.ckpt")
    model = lit_models.load(tmp_path / "model.ckpt", num_classes=4, modules=[__name__])
    Trainer(max_epochs=1, accelerator="cpu", callbacks=[FreezeBackbone("rnn")], **QUIET).fit(model, images(model, 4))
    assert model.modes == (True, False, True)
    assert {key.partition(".")[0] for key, weight in model.named_parameters() if weight.requires_grad} == {"head"}


def test_several_parts_by_their_paths():
    model = Net(num_classes=3)
    callback = FreezeBackbone(["features", "classifier.1"])
    Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], **QUIET).fit(model, images(model, 3))
    assert [key for key, weight in model.named_parameters() if weight.requires_grad] == [
        "classifier.4.weight",
        "classifier.4.bias",
    ]


@pytest.mark.parametrize(("kind", "there"), [(Net, "features, classifier"), (RNNClassifier, "rnn, head")])
def test_a_part_that_there_is_not_is_refused(kind, there):
    model: LightningModule = kind()
    trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[FreezeBackbone("backbone")], **QUIET)
    with pytest.raises(ValueError, match=f"{kind.__name__} has no submodule 'backbone', but {there}"):
        trainer.fit(model, images(model, 10))
