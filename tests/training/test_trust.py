"""Checkpoints, weights and galleries from elsewhere: what they may have imported, and where they may have written."""

import json
import logging
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, fails
from jsonargparse import Namespace, _common
from jsonargparse.typing import Path_fr
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

import lit_models
from lit_models import FaceEmbedder, Net
from lit_models.cli import main as cli
from lit_models.training.resume import RunCheckpoint
from lit_models.training.trust import Command, is_importable, modules_of, plain_settings
from rl import DQN
from rl.env_state import get_env_state, set_env_state

ARTICLE = f"--config={ROOT / 'configs' / 'mnist_article.yaml'}"
SHORT = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
FEW = {"fit": [], "test": ["--trainer.limit_test_batches=1"], "validate": ["--trainer.limit_val_batches=1"]}
FEW |= {"predict": ["--trainer.limit_predict_batches=1"]}
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
MODULE = """
from collections.abc import Callable
from pathlib import Path

import gymnasium
import torch
from lightning.pytorch.callbacks import Callback

import datamodules
import lit_models

Path({marker!r}).touch()
gymnasium.register("Own-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=10)


class Own(lit_models.Net):
    def __init__(self, activation: Callable | str = "relu", make: Callable | None = None, extra=None, **options):
        super().__init__(**options)
        self.hparams.pop("make")  # code has no place in a checkpoint


class Series(datamodules.MNISTDataModule):
    pass


class Descent(torch.optim.SGD):
    pass


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


class Watch(Callback):
    pass


class Transformed(datamodules.MNISTDataModule):
    def __init__(self, transform: Callable | None = None, **options):
        super().__init__(**options)
        self.hparams.pop("transform")  # an object has no place in a checkpoint
"""


class Module:
    """A module beside the command; `imported` says whether it was."""

    def __init__(self, folder, name):
        self.name, self.marker = name, folder / f"{name} was imported"
        (folder / f"{name}.py").write_text(MODULE.format(marker=str(self.marker)))

    @property
    def imported(self):
        return self.marker.exists()


@pytest.fixture
def beside(tmp_path, monkeypatch, request):
    """Makes modules in the folder that the command runs in, of names that no other test has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def beside(name):
        made.append(Module(tmp_path, f"{name}_{abs(hash(request.node.nodeid))}"))
        return made[-1]

    yield beside
    for module in made:
        sys.modules.pop(module.name, None)


@pytest.fixture
def evil(beside):
    return beside("evil")


def forged(last, path, **changes):
    """A real checkpoint with other contents; `model__optimizer` is a key of its config's model."""
    content = torch.load(last, weights_only=True)
    config = content["config"]
    for key, value in changes.items():
        section, _, option = key.partition("__")
        if not option:
            content[key] = value
        elif section in ("model", "data"):
            config[section]["init_args"][option] = value
        else:
            config.setdefault(section, {})[option] = value
    torch.save(content, path)
    return path


FORGED = {
    "model": lambda name: {"model_class": f"{name}.Own"},
    "data": lambda name: {"data_class": f"{name}.Series"},
    "optimizer": lambda name: {"model__optimizer": {"class_path": f"{name}.Descent", "init_args": {"lr": 0.1}}},
    "function": lambda name: {"model__optimizer": f"{name}.sgd"},
    "text": lambda name: {"model__optimizer": f"{{class_path: {name}.Descent, init_args: {{lr: 0.1}}}}"},
    "schedule": lambda name: {"model__lr_scheduler": {"class_path": f"{name}.Schedule"}},
}


CASES = [*(("fit", what) for what in FORGED), ("test", "model"), ("test", "function"), ("validate", "data")]


@pytest.mark.parametrize(("verb", "what"), [*CASES, ("predict", "function")])
def test_a_checkpoint_has_no_module_imported_that_nobody_has_named(verb, what, evil, last, tmp_path, capsys):
    path = forged(last, tmp_path / "other.ckpt", **FORGED[what](evil.name))
    # What is named with another purpose, or as an option, is no module.
    other = [f"--output={evil.name}.csv"] if verb == "predict" else [f"--name={evil.name}.Own"]
    message = fails(capsys, verb, f"--ckpt_path={path}", *other)
    assert f"from a module that is imported only if you name it: add --modules {evil.name} " in message
    assert f'(in Python, modules=["{evil.name}"])' in message
    assert not evil.imported


def test_a_url_has_nothing_imported(last, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = Module(tmp_path, "adlfs")  # what fsspec imports for it
    path = forged(last, tmp_path / "other.ckpt", model__optimizer="abfs://folder/sgd.yaml")
    assert fails(capsys, "test", f"--ckpt_path={path}")
    assert not module.imported


def test_a_file_beside_the_command_names_no_module_for_a_checkpoint(evil, last, tmp_path, capsys):
    (tmp_path / "sgd").write_text(f"class_path: {evil.name}.Descent")
    path = forged(last, tmp_path / "other.ckpt", model__optimizer="sgd")
    assert fails(capsys, "test", f"--ckpt_path={path}")
    assert not evil.imported


@pytest.mark.parametrize("verb", ["export", "enrol", "identify", "verify"])
def test_nor_do_our_own_verbs(verb, evil, last, tmp_path, capsys):
    path = forged(last, tmp_path / "other.ckpt", model_class=f"{evil.name}.Own")
    options = {
        "export": ["--format=safetensors", "--output=weights"],
        "enrol": ["--gallery=gallery", "--pictures=people"],
        "identify": ["--gallery=gallery", "--output=out", "one.png"],
        "verify": ["one.png", "two.png"],
    }
    pytest.importorskip("safetensors", reason="needs the extra export")
    command = [verb, f"--ckpt_path={path}", *options[verb]]
    assert f"holds {evil.name}.Own, from a module that" in fails(capsys, *command)
    assert not evil.imported
    cli.main([*command, f"--modules={evil.name}"])  # which is of no use to those that recognise people
    assert evil.imported


def test_an_export_imports_no_data_module_and_calls_no_function(evil, last, tmp_path):
    pytest.importorskip("safetensors", reason="needs the extra export")
    command = ["export", f"--ckpt_path={tmp_path / 'other.ckpt'}", "--format=safetensors", "--output=weights"]
    forged(last, tmp_path / "other.ckpt", data_class=f"{evil.name}.Series")
    assert cli.main(command) == 0
    forged(last, tmp_path / "other.ckpt", data_class="torch.save", datamodule_hyper_parameters={"obj": 1, "f": "new"})
    assert cli.main([*command, "--overwrite"]) == 0
    assert not evil.imported
    assert not Path("new").exists()


@pytest.mark.parametrize("shape", [["a", 1, 1], [-1, 28, 28], [2**40, 2**40], {"a": 1}, 7])
def test_a_shape_that_is_none_is_one_line(shape, last, tmp_path, capsys):
    path = forged(last, tmp_path / "other.ckpt", input_shape=shape)
    message = fails(capsys, "export", f"--ckpt_path={path}", "--format=torch_export", f"--output={tmp_path / 'file'}")
    assert message.endswith("is damaged: its input_shape is not a list of sizes")
    assert message == fails(capsys, "test", f"--ckpt_path={path}")


@pytest.mark.parametrize("way", ["modules", "list", "option", "config", "within", "data"])
def test_a_module_that_is_named_is_imported(way, evil, last, tmp_path):
    changes = {"data_class": f"{evil.name}.Series"} if way == "data" else {"model_class": f"{evil.name}.Own"}
    path = forged(last, tmp_path / "other.ckpt", **changes)
    Path("model.yaml").write_text(f"class_path: {evil.name}.Own")
    Path("own.yaml").write_text(f"model: {{class_path: {evil.name}.Own}}")
    Path("outer.yaml").write_text("model: model.yaml")
    flags = {
        "modules": [f"--modules={evil.name}"],
        "list": ["--modules", f"[another, {evil.name}]"],
        "option": ["--model", f"{evil.name}.Own"],
        "config": ["--config", "own.yaml"],
        "within": ["--config=outer.yaml"],
        "data": [f"--data={evil.name}.Series"],
    }
    command = cli.CLI(["test", f"--ckpt_path={path}", *FEW["test"], *flags[way]])
    assert evil.imported
    owner = command.datamodule if way == "data" else command.model
    assert type(owner).__module__ == evil.name


def test_what_a_command_names(tmp_path, monkeypatch):
    def named(*args):
        return Command(["fit", *args]).modules

    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("model: {class_path: a.Net, init_args: {x: b.C, optimizer: c.D}}\nmodules: [d, e.f]")
    Path("loop.yaml").write_text("model: loop.yaml\ntrainer: {logger: a.Logger}")
    for given in (["--config", "own.yaml"], ["--config=own.yaml"], ["-c", "own.yaml"], ["-cown.yaml"], ["-c=own.yaml"]):
        assert named(*given) == {"a", "c", "d", "e.f"}
    assert named('--config={"model": {"class_path": "a.Net"}}') == named("--trainer", "loop.yaml") == {"a"}

    assert named("--model=a.Net", "--data", "b.c.Data", "--trainer.callbacks+=d.Watch") == {"a", "b", "d"}
    assert named("--trainer.callbacks", '[{"class_path": "a.Watch"}, b.Watch]') == {"a", "b"}
    assert named("--model.env_id=a.b:Own-v0", "--modules+=c.d", "--modules=[e, f]") == {"a", "c.d", "e", "f"}
    assert named("--model.anything", "{class_path: a.B, init_args: {optimizer: c.D}}") == {"a", "c"}
    assert named("--model=lit_models.Net", "--model.optimizer=torch.optim.SGD", "--data=MNISTDataModule") == {
        "lit_models.Net",
        "torch.optim.SGD",
    }
    assert named("--output=a.csv", "--data.path", "b.csv", "--d.e=1", "--name=f.g", "--config=h.yaml") == set()
    assert named("--name=2026-13-01", "--name", "[" * 100_000, "--model", "{", "--logger=s3://x.y") == set()
    assert is_importable("torch.optim.SGD", [])
    assert is_importable("pytorch_optimizer.optimizer.soap.SOAP", [])
    assert is_importable("a.b.C", ["a.b"])
    for name, modules in (("torchaudio.C", []), ("a.b.C", ["a.c", "b"]), ("ab.C", ["a"])):
        assert not is_importable(name, modules)
    assert not is_importable("lightning.pytorch.demos.mnist_datamodule.MNISTDataModule", [])  # which downloads anywhere


def test_what_a_union_would_take_for_text_is_not_imported_either(beside, last, tmp_path):
    own, evil = beside("own"), beside("evil")
    path = forged(last, tmp_path / "other.ckpt", model_class=f"{own.name}.Own", model__activation=f"{evil.name}.sgd")
    command = ["predict", f"--ckpt_path={path}", f"--modules={own.name}", *FEW["predict"]]
    assert cli.main([*command, f"--output={evil.name}.csv"]) == 0
    assert (own.imported, evil.imported) == (True, False)


def test_a_class_where_any_value_will_do_is_not_imported(beside, last, tmp_path, capsys):
    own, evil = beside("own"), beside("evil")
    spec = {"class_path": f"{evil.name}.Descent"}
    for extra in ([spec], {"inner": spec}):
        path = forged(last, tmp_path / "other.ckpt", model_class=f"{own.name}.Own", model__extra=extra)
        command = ["test", f"--ckpt_path={path}", f"--modules={own.name}", *FEW["test"]]
        assert f"holds {evil.name}.Descent, from a module" in fails(capsys, *command)
    path = forged(last, tmp_path / "other.ckpt", model_class=f"{own.name}.Own", model__extra=json.dumps(spec))
    cli.main(["test", f"--ckpt_path={path}", f"--modules={own.name}", *FEW["test"]])
    assert not evil.imported


def save(model, path, **changes):
    trainer = Trainer(accelerator="cpu", **QUIET)
    trainer.strategy.connect(model)
    model.trainer = trainer
    trainer.save_checkpoint(path)
    torch.save(torch.load(path, weights_only=True) | changes, path)
    return path


def test_load_imports_what_is_named(evil, tmp_path):
    path = save(Net(), tmp_path / "other.ckpt", model_class=f"{evil.name}.Own")
    with pytest.raises(ValueError, match=rf'holds {evil.name}.Own, .* \(in Python, modules=\["{evil.name}"\]\)'):
        lit_models.load(path)
    assert not evil.imported
    assert type(lit_models.load(path, modules=[evil.name])).__module__ == evil.name


def test_safetensors_are_no_way_around(evil, tmp_path):
    save_file = pytest.importorskip("safetensors.torch", reason="needs the extra export").save_file
    state = {key: value.contiguous() for key, value in Net().state_dict().items()}
    save_file(state, tmp_path / "weights", {"model_class": f"{evil.name}.Own", "hyperparameters": "{}"})
    with pytest.raises(ValueError, match=f"holds {evil.name}.Own, from a module that is imported only if you name it"):
        lit_models.load(tmp_path / "weights")
    assert not evil.imported
    assert type(lit_models.load(tmp_path / "weights", modules=[evil.name])).__module__ == evil.name


def test_an_environment_of_a_module_is_not_made_unless_it_is_named(evil, tmp_path, capsys):
    small = {"num_envs": 2, "buffer_size": 100, "learning_starts": 10, "batch_size": 8, "test_episodes": 2}
    path = save(DQN("CartPole-v1", **small), tmp_path / "agent.ckpt")
    hyperparameters = torch.load(path, weights_only=True)["hyper_parameters"]
    own = hyperparameters | {"env_id": f"{evil.name}:Own-v0"}
    inner = hyperparameters | {"env_options": {"env_id": f"{evil.name}:Own-v0"}}
    for changed in (own, inner):
        save(DQN("CartPole-v1", **small), path, hyper_parameters=changed)
        with pytest.raises(ValueError, match=f"holds {evil.name}:Own-v0, from a module"):
            lit_models.load(path)
        assert f"add --modules {evil.name} " in fails(capsys, "test", f"--ckpt_path={path}")
    assert not evil.imported
    save(DQN("CartPole-v1", **small), path, hyper_parameters=own)
    assert lit_models.load(path, modules=[evil.name]).hparams.env_id == f"{evil.name}:Own-v0"
    for flag in (f"--modules={evil.name}", f"--model.env_id={evil.name}:Own-v0"):
        assert cli.main(["test", f"--ckpt_path={path}", flag]) == 0
    writer = {"class_path": "torch.utils.tensorboard.SummaryWriter", "init_args": {"log_dir": str(tmp_path / "new")}}
    for options in ({"x": writer}, {"x": json.dumps(writer)}):
        save(DQN("CartPole-v1", **small), path, hyper_parameters=hyperparameters | {"env_options": options})
        assert "in env_options or wrappers: a class there" in fails(capsys, "test", f"--ckpt_path={path}")
    assert not (tmp_path / "new").exists()


def test_the_state_of_a_generator_calls_no_function(monkeypatch):
    draw = np.random.default_rng(3)
    kept = get_env_state(draw)
    expected = draw.random(3).tolist()
    assert set_env_state(np.random.default_rng(), kept).random(3).tolist() == expected
    called = []
    monkeypatch.setattr(np.random, "test", lambda: called.append(1))
    pairs = kept["generator"]["pairs"]
    kept["generator"]["pairs"] = [(key, "test" if key == "bit_generator" else value) for key, value in pairs]
    with pytest.raises(ValueError, match="NumPy has no generator test"):
        set_env_state(np.random.default_rng(), kept)
    assert not called


def test_the_commands_that_are_printed_name_the_modules(beside, capsys, caplog, monkeypatch):
    def fail(self, batch, batch_idx):
        if batch_idx == 1:
            raise OSError("the disk is gone")
        return step(self, batch, batch_idx)

    step, own, other = Net.training_step, beside("own"), beside("other")
    with monkeypatch.context() as broken, caplog.at_level(logging.INFO):
        broken.setattr(Net, "training_step", fail)
        options = [f"--model={own.name}.Own", f"--model.make={other.name}.sgd", "--trainer.max_epochs=1", *SHORT]
        assert "the disk is gone" in fails(capsys, "fit", ARTICLE, *options)
    (line,) = (line for line in caplog.messages if "python -m lit_models fit" in line)
    assert cli.main(shlex.split(line)[3:]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[-2:] == ["--modules", f"[{other.name}, {own.name}]"]
    assert cli.main([*command[3:], *FEW["test"]]) == 0


def test_other_classes_of_torch_are_built_where_they_are_named(beside, tmp_path, capsys, monkeypatch):
    own, compose = beside("own"), {"class_path": "torchvision.transforms.Compose", "init_args": {"transforms": []}}
    data = {"class_path": f"{own.name}.Transformed", "init_args": {"transform": compose, "val_size": 10}}
    Path("own.yaml").write_text(yaml.safe_dump({"data": data}))
    assert cli.main(["fit", ARTICLE, "--config=own.yaml", "--trainer.max_epochs=1", *SHORT]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])[3:]
    assert command[-2:] == ["--modules", f"[{own.name}, torchvision.transforms.Compose]"]
    assert cli.main([*command, *FEW["test"]]) == 0
    refused = fails(capsys, *command[:-2], f"--modules={own.name}", *FEW["test"])
    assert "holds torchvision.transforms.Compose, which is no class that it may have built" in refused
    assert refused.endswith("add --modules torchvision.transforms.Compose")
    goes_on = ["fit", ARTICLE, "--config=own.yaml", "--ckpt_path=last", "--trainer.max_epochs=2", *SHORT]
    assert cli.main(goes_on) == 0  # whose config file names it


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_from_elsewhere_does_not_choose_where_is_written(last, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "precious").mkdir(parents=True)
    (elsewhere / "precious" / "file").write_text("kept")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    place = str(elsewhere / "new")
    callbacks = "lightning.pytorch.callbacks"
    path = forged(
        last,
        tmp_path / "other.ckpt",
        trainer__callbacks=[{"class_path": f"{callbacks}.ModelCheckpoint", "init_args": {"dirpath": place}}],
        trainer__logger={"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": place}},
        trainer__profiler={
            "class_path": "lightning.pytorch.profilers.SimpleProfiler",
            "init_args": {"dirpath": place, "filename": "x"},
        },
        trainer__plugins=[{"class_path": "lightning.pytorch.plugins.TorchCheckpointIO"}],
        trainer__default_root_dir=place,
        checkpoint__dirpath=place,
        checkpoint__filename=f"{place}/best",
        trainer__accumulate_grad_batches=3,
    )
    content = torch.load(path, weights_only=True)
    content["config"] |= {"name": "../../elsewhere/name", "config": [f"{place}/x.yaml"], "ckpt_path": place}
    torch.save(content, path)
    before = snapshot(elsewhere)
    with pytest.warns(UserWarning, match="does not lie in its run's folder, so that") as caught:
        command = cli.CLI(["fit", f"--ckpt_path={path}"])
    assert snapshot(elsewhere) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["elsewhere", "other.ckpt", "work"]
    assert [file.name for file in Path("logs").iterdir()] == ["Net"]
    assert command.trainer.accumulate_grad_batches == 3  # a plain setting
    assert not any(type(callback) is ModelCheckpoint for callback in command.trainer.callbacks)
    (said,) = (str(one.message) for one in caught if "run's folder" in str(one.message))
    keys = [f"trainer.{key}" for key in ("logger", "callbacks", "profiler", "plugins")]
    assert all(key in said for key in [*keys, "checkpoint.dirpath", "checkpoint.filename"])
    assert "default_root_dir" not in said


def test_what_is_plain():
    config = {
        "seed_everything": 3,
        "compile": True,
        "name": "../x",
        "trainer": {
            "max_epochs": 2,
            "logger": None,
            "strategy": "ddp",
            "accelerator": "evil.F",
            "max_time": "01:00:00",
        },
        "checkpoint": {"monitor": "val/loss.x", "dirpath": "", "filename": "x", "save_top_k": -1},
        "trainer.default_root_dir": "x",
        "a": [],
    }
    kept, left = plain_settings(config)
    assert kept == {
        "seed_everything": 3,
        "compile": True,
        "trainer": {"max_epochs": 2, "logger": None, "strategy": "ddp", "max_time": "01:00:00"},
        "checkpoint": {"monitor": "val/loss.x", "save_top_k": -1},
    }
    assert left == ["trainer.accelerator", "checkpoint.filename", "trainer.default_root_dir"]


def test_nothing_is_fetched_for_a_checkpoint(last, tmp_path, monkeypatch):
    content = torch.load(last, weights_only=True)
    data = content["datamodule_hyper_parameters"] | {"download": True}
    path = forged(last, tmp_path / "other.ckpt", data__download=True, datamodule_hyper_parameters=data)
    command = cli.CLI(["test", f"--ckpt_path={path}", *FEW["test"], f"--trainer.default_root_dir={tmp_path}"])
    assert command.datamodule.hparams.download is False
    asked = []

    def get_model(name, weights):
        asked.append((name, weights))
        raise ValueError("no network")

    path = save(FaceEmbedder(image_size=32), tmp_path / "face.ckpt")
    hyperparameters = torch.load(path, weights_only=True)["hyper_parameters"]
    changed = hyperparameters | {"backbone": "resnet18", "weights": "DEFAULT"}
    save(FaceEmbedder(image_size=32), path, hyper_parameters=changed)
    monkeypatch.setattr("lit_models.faces.backbones.models.get_model", get_model)
    with pytest.raises(ValueError, match="no network"):
        lit_models.load(path)
    assert asked == [("resnet18", None)]


CALLS = {
    "a shell": {"class_path": "torch.utils.collect_env.run", "init_args": {"command": "mkdir called"}},
    "a file": {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": ".", "model": "m", "source": "local"}},
    "a download": {
        "class_path": "torch.hub.load_state_dict_from_url",
        "init_args": {"url": "file:///nowhere", "model_dir": "called"},
    },
    "as text": "torch.utils.collect_env.run",
    "as YAML": "{class_path: torch.utils.collect_env.run, init_args: {command: mkdir called}}",
}


@pytest.mark.parametrize("verb", ["fit", "test"])
@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize("key", ["optimizer", "lr_scheduler", "optimizer.class_path"])
def test_no_function_is_called_for_a_checkpoint(verb, what, key, last, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hubconf.py").write_text("import os; os.mkdir('called')\ndef m(*arguments, **options): pass")
    content = torch.load(last, weights_only=True)
    value = CALLS[what]["class_path"] if key.endswith("class_path") and isinstance(CALLS[what], dict) else CALLS[what]
    path = forged(last, tmp_path / "other.ckpt", hyper_parameters=content["hyper_parameters"] | {key: value})
    message = fails(capsys, verb, f"--ckpt_path={path}")
    assert "which is no class that it may have built" in message or "in its config is no name" in message
    assert not (tmp_path / "called").exists()


def test_no_key_with_a_dot_and_no_other_argument_has_anything_fetched(last, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = torch.load(last, weights_only=True)
    cifar = {"class_path": "datamodules.CIFAR10DataModule", "init_args": {"data_dir": str(tmp_path / "fetched")}}
    model = content["config"]["model"]
    for section, value in (
        ("data", cifar | {"dict_kwargs": {"download": True}}),
        ("data", cifar | {"init_args.download": True}),
        ("data", cifar | {"init_args": cifar["init_args"] | {"x.download": True}}),
        ("data.init_args", {"download": True}),
        ("data", cifar | {"init_args": cifar["init_args"] | {"download": True}}),
    ):
        config = content["config"] | {"model": model, section: value}
        changed = {key: part for key, part in content.items() if key not in ("data_class", "MNISTDataModule")}
        torch.save(changed | {"config": config, "datamodule_hyper_parameters": {}}, tmp_path / "other.ckpt")
        for verb in ("fit", "test"):
            if section == "data" or verb == "fit":
                assert "could not download" not in fails(capsys, verb, "--ckpt_path=other.ckpt", *FEW[verb])
            else:  # which looks at the model and the data alone
                assert cli.main([verb, "--ckpt_path=other.ckpt", *FEW[verb]]) == 0
            assert not (tmp_path / "fetched").exists()
            assert not (tmp_path / "data").exists()


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """A run of one epoch, which can go on for another, with a callback of its own."""
    folder = tmp_path_factory.mktemp("short")
    stop = {"class_path": "EarlyStopping", "init_args": {"monitor": "train/loss", "patience": 9}}
    (folder / "own.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stop]}}))
    flags = [f"--trainer.default_root_dir={folder / 'logs'}", "--trainer.max_epochs=1", *SHORT]
    assert cli.main(["fit", ARTICLE, f"--config={folder / 'own.yaml'}", *flags]) == 0
    return folder / "logs"


@pytest.fixture
def begun(short_run, tmp_path):
    """The last checkpoint of a copy of that run."""
    shutil.copytree(short_run, tmp_path / "logs")
    return tmp_path / "logs" / "mnist_article" / "version_0" / "checkpoints" / "last.ckpt"


def test_a_run_that_goes_on_in_its_folder_has_its_callbacks_from_its_config(begun, evil, tmp_path, capsys):
    content = torch.load(begun, weights_only=True)
    content["config"]["trainer"]["callbacks"] = [{"class_path": f"{evil.name}.Watch"}]
    torch.save(content, begun)
    command = cli.CLI(["fit", f"--ckpt_path={begun}", "--trainer.max_epochs=2"])
    assert command.trainer.global_step == 4
    assert any(isinstance(callback, EarlyStopping) for callback in command.trainer.callbacks)
    assert [folder.name for folder in begun.parents[2].iterdir()] == ["version_0"]
    assert not evil.imported
    config = begun.parents[1] / "config.yaml"
    saved = yaml.safe_load(config.read_text())
    saved["trainer"]["callbacks"] = [{"class_path": f"{evil.name}.Watch"}]
    config.write_text(yaml.safe_dump(saved))
    assert f"config.yaml holds {evil.name}.Watch, from a module" in fails(capsys, "fit", f"--ckpt_path={begun}")
    assert not evil.imported
    assert cli.main(["fit", f"--ckpt_path={begun}", f"--modules={evil.name}"]) == 0
    assert evil.imported
    for damaged in ("[1, 2]", "a: [", "text", ""):
        config.write_text(damaged)
        assert "config.yaml is damaged" in fails(capsys, "fit", f"--ckpt_path={begun}")


def test_a_resume_that_was_refused_changes_nothing_for_the_next(begun):
    config = begun.parents[1] / "config.yaml"
    saved = yaml.safe_load(config.read_text())
    saved["trainer"]["max_epochs"] = 5  # as it is written before a run is refused
    config.write_text(yaml.safe_dump(saved))
    assert cli.CLI(["fit", f"--ckpt_path={begun}"]).trainer.max_epochs == 1


@pytest.mark.parametrize(
    ("kind", "monitor"), [(RunCheckpoint, None), (RunCheckpoint, "train/loss"), (ModelCheckpoint, "train/loss")]
)
def test_a_checkpoint_deletes_and_overwrites_nothing(kind, monitor, begun, tmp_path, capsys):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    bad, worst = f"{begun.parent}/../../../../precious", torch.tensor(float("inf"))
    content, options = torch.load(begun, weights_only=True), {"monitor": monitor, "mode": "min", "save_last": True}
    content["callbacks"][kind(**options).state_key] = {
        "dirpath": str(begun.parent),
        "best_k_models": {bad: worst},
        "kth_best_model_path": bad,
        "kth_value": worst,
        "best_model_path": bad,
        "best_model_score": worst,
        "last_model_path": bad,
    }
    torch.save(content, begun)
    section = {"checkpoint": options}
    if kind is ModelCheckpoint:
        section = {"trainer": {"callbacks": [{"class_path": "ModelCheckpoint", "init_args": options}]}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(section))
    capsys.readouterr()
    assert cli.main(["fit", f"--config={tmp_path / 'own.yaml'}", f"--ckpt_path={begun}", "--trainer.max_epochs=2"]) == 0
    assert (tmp_path / "precious" / "file").read_text() == "kept"
    assert "precious" not in capsys.readouterr().out
    assert sorted(path.suffix for path in begun.parent.iterdir()) == [".ckpt"] * len(list(begun.parent.iterdir()))


def test_a_keeper_takes_over_names_in_its_own_folder_alone(tmp_path):
    def kept(paths, folder):
        keeper = RunCheckpoint(dirpath=tmp_path / "now")
        state = {"dirpath": folder, "best_model_score": torch.tensor(1.0), "kth_value": torch.tensor(1.0)}
        state |= {"best_model_path": paths[0], "kth_best_model_path": paths[0], "last_model_path": paths[1]}
        keeper.load_state_dict(state | {"best_k_models": {paths[0]: torch.tensor(1.0)}, "monitor": None})
        return keeper

    (tmp_path / "now").mkdir()
    foreign = kept(["/elsewhere/best.ckpt", "/elsewhere/last.ckpt"], "/elsewhere")
    assert (foreign.best_model_path, foreign.last_model_path, foreign.best_k_models) == ("", "", {})
    (tmp_path / "now" / "last.ckpt").touch()  # the folder has moved
    moved = kept(["/before/best.ckpt", "/before/last.ckpt"], "/before")
    assert moved.best_model_path == moved.kth_best_model_path == str(tmp_path / "now" / "best.ckpt")
    assert moved.last_model_path == str(tmp_path / "now" / "last.ckpt")
    assert list(moved.best_k_models) == [moved.best_model_path]
    for path in ("/before/notes.txt", f"{tmp_path}/now/..", f"{tmp_path}/now/", "..", "", 5):
        other = kept([path, "/before/last.ckpt"], str(tmp_path / "now"))
        assert (other.best_model_path, other.kth_best_model_path, other.best_k_models) == ("", "", {})


def test_jsonargparse_is_left_as_it_was(last, tmp_path, evil, capsys):
    before = dict(_common.parsing_settings)
    assert before["import_path_verdicts"]  # private, and put back in one place
    fails(capsys, "test", f"--ckpt_path={forged(last, tmp_path / 'other.ckpt', **FORGED['function'](evil.name))}")
    cli.CLI(["test", f"--ckpt_path={last}", *FEW["test"], f"--trainer.default_root_dir={tmp_path}"])
    assert _common.parsing_settings == before


def endless():
    value = {}
    value["self"] = value
    return value


def deep():
    value = []
    for _ in range(200):
        value = [value]
    return value


@pytest.mark.parametrize(
    "changes",
    [
        {"model_class": 5},
        {"data_class": ["datamodules.MNISTDataModule"]},
        {"config": ["model"]},
        {"config": {1: 2}},
        {"hyper_parameters": {3: 4}},
        {"hyper_parameters": "text"},
        {"hyper_parameters": endless()},
        {"hyper_parameters": {"nested": deep()}},
        {"datamodule_hyper_parameters": 5},
        {"state_dict": None},
        {"state_dict": {3: torch.ones(1)}},
        {"global_step": "many"},
        {"config": {"model": "lit_models.Net"}, "model_class": None},
        {"config": {"model": {"class_path": "lit_models.Net", "init_args": [1]}}},
    ],
    ids=range(14),
)
def test_a_checkpoint_of_other_kinds_is_one_line(changes, last, tmp_path, capsys):
    path = forged(last, tmp_path / "other.ckpt", **changes)
    for verb in ("fit", "test"):
        assert f"{path} is damaged: " in fails(capsys, verb, f"--ckpt_path={path}")


def test_hyperparameters_that_do_not_fit_are_one_line(last, tmp_path, capsys):
    known = torch.load(last, weights_only=True)["hyper_parameters"]
    for changed in ({"channels": 5}, {"channels": {}}, {"hidden_features": "x"}):
        path = forged(last, tmp_path / "other.ckpt", hyper_parameters=known | changed)
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            lit_models.load(path)
        fails(capsys, "test", f"--ckpt_path={path}")


@pytest.mark.parametrize("text", ["{", "[1]", "5", '"text"', "[" * 100_000])
def test_safetensors_of_other_kinds_are_one_line(text, tmp_path):
    save_file = pytest.importorskip("safetensors.torch", reason="needs the extra export").save_file
    state = {key: value.contiguous() for key, value in Net().state_dict().items()}
    save_file(state, tmp_path / "weights", {"model_class": "lit_models.Net", "hyperparameters": text})
    with pytest.raises(
        ValueError, match=f"{tmp_path / 'weights'} is damaged: its hyper_?parameters (are|is) no"
    ) as caught:
        lit_models.load(tmp_path / "weights")
    assert "\n" not in str(caught.value)


def test_a_section_from_a_file_needs_no_module(tmp_path):
    (tmp_path / "model.yaml").write_text("class_path: lit_models.net.Net")
    section = Namespace(class_path="lit_models.net.Net", __path__=Path_fr(tmp_path / "model.yaml"))
    assert modules_of(section) == set()
