"""Exported models, run without the code that exports them."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import registry
import torch
import worlds  # noqa: F401 - registers the environments
from conftest import fails
from lightning import LightningModule, Trainer
from torch import nn

import lit_models
from datamodules import MNISTDataModule
from lit_models import CNN, RNN, FaceEmbedder, Forecaster, Net, RNNClassifier, Transformer, TransformerForecaster
from lit_models.cli import main as cli
from lit_models.export import export as export_module
from lit_models.export.recurrence import OnnxRecurrence
from rl import DQN

onnx = pytest.importorskip("onnx", reason="needs the extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
safetensors = pytest.importorskip("safetensors", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
SMALL = {"num_envs": 2, "buffer_size": 100, "learning_starts": 10, "batch_size": 8}
GPT2 = {"positions": "learned", "norm": "layer", "activation": "gelu", "qk_norm": False, "tie_head": True, "bias": True}
MODELS = {
    "Net": lambda: Net(mean=0.1307, std=0.3081, class_names=[f"class {label}" for label in range(10)]),
    "CNN": lambda: CNN(num_classes=4, batch_norm=True, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4]),
    "CNN of any size": lambda: CNN(in_channels=1, image_size=40),
    "FaceEmbedder": lambda: FaceEmbedder(image_size=32, num_classes=5),
    "RNNClassifier": lambda: RNNClassifier(hidden_dim=16),
    "pixels": lambda: RNNClassifier(scan_order="permuted_pixel", cell="lstm", num_layers=2, hidden_dim=8),
    "RNN": lambda: RNN(2, 12, 2, residual=True, mean=[300.0, -5.0], std=[20.0, 3.0]),
    "lstm": lambda: RNN(2, 12, 2, cell="lstm", num_layers=2, mean=300.0, std=20.0),
    "seasonal": lambda: RNN(1, 8, 1, residual=True, scale="window", season=4, ar_order=7, mean=300.0, std=20.0),
    "quantiles": lambda: RNN(2, 8, 2, scale="window", quantiles=[0.1, 0.5, 0.9], mean=300.0, std=20.0),
    "inputs": lambda: RNN(4, 8, 2, 1, scale="window", season=4, ar_order=2, log=True, mean=[300.0, 200, 0, 1], std=5.0),
    "logarithm": lambda: RNN(2, 8, 2, residual=True, cell="lstm", log=True, season=4, mean=300.0, std=20.0),
    "attending": lambda: TransformerForecaster(1, 1, 0, 8, 2, 2, residual=True, scale="window", mean=300.0, std=20.0),
    "plain": lambda: RNN(2, 12, 1, cell="rnn", num_layers=2),
    "GPT-2": lambda: Transformer(context_length=16, dim=8, depth=2, heads=2, **GPT2),
    "DQN": lambda: DQN(dueling=True, layer_norm=True, ema_decay=0.9, **SMALL),
    "DQN of images": lambda: DQN("Screen-v0", frame_stack=2, hidden_sizes=(16,), **SMALL),
}
MODELS |= {name: row.make for name, row in registry.MODELS.items() if name not in MODELS}


def save(model, path, **additions):
    """A checkpoint as a Trainer writes it, of a model whose batch norm has seen something."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
    if isinstance(model, DQN) and model.ema_network is not None:
        for weight in model.ema_network.parameters():
            weight.data.mul_(1.1)  # so that it isn't the network
    trainer = Trainer(accelerator="cpu", **QUIET)
    trainer.strategy.connect(model)
    model.trainer = trainer
    trainer.save_checkpoint(path)
    torch.save(torch.load(path, weights_only=True) | additions, path)
    return model.eval()


def export(checkpoint, form, output, *flags):
    return cli.main(["export", f"--ckpt_path={checkpoint}", f"--format={form}", f"--output={output}", *flags])


def opened(form, path):
    """A file as a function, in the way that somebody without this package would have it computed."""
    if form == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        return lambda *inputs: [
            torch.from_numpy(output)
            for output in session.run(None, dict(zip(names, [tensor.numpy() for tensor in inputs], strict=True)))
        ]
    module = torch.export.load(path).module()
    return lambda *inputs: outputs if isinstance(outputs := module(*inputs), tuple) else (outputs,)


def facts(form, path):
    if form == "onnx":
        return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    if form == "safetensors":
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata()
    keys = ("model_class", "hyperparameters", "class_names", "mean", "std", "inputs", "outputs", "lit_models")
    content = dict.fromkeys(keys, "")
    torch.export.load(path, extra_files=content)
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in content.items()}


def examples(model, batch, seen=5):
    """Random raw inputs."""
    if isinstance(model, Forecaster):
        own, sizes = model.hparams, {"batch": batch, "seen": seen}
        states = [torch.randn([sizes.get(axis, axis) for axis in one.shape]) for one in model.hidden_spec.values()]
        states += [torch.rand(batch, rows, own.output_dim) + 0.5 for rows in model.memory.values()]
        rows = torch.randn(batch, 2 * batch - 1, own.input_dim)
        return [rows * model.normalize.std + model.normalize.mean, *states]
    shape = (batch, *model.example_input_array.shape[1:])
    if model.example_input_array.is_floating_point():
        return [torch.randn(shape)]
    return [torch.randint(0, 256, shape).to(model.example_input_array.dtype)]


def flat(result):
    """The tensors of a result, whatever tuples they are in."""
    return [result] if isinstance(result, torch.Tensor) else [tensor for part in result for tensor in flat(part)]


LONG, SLOW = pytest.mark.slow, ("FaceEmbedder", "pixels")  # their filters, and loops, take 10 s to trace
EXPORTED = {}


@pytest.fixture
def exported(tmp_path_factory, capfd):
    """Exports a model, once for all tests: the model, the file, and what was printed."""

    def once(name, form):
        if (name, form) not in EXPORTED:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp("exported")
            model, output = save(MODELS[name](), folder / "model.ckpt"), folder / "new" / f"model.{form}"
            assert export(folder / "model.ckpt", form, output) == 0
            EXPORTED[name, form] = model, output, capfd.readouterr()
        return EXPORTED[name, form]

    return once


@pytest.mark.parametrize("form", ["onnx", "torch_export"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=LONG if name in SLOW else ()) for name in MODELS])
def test_raw_input_in_a_batch_of_any_size_gives_what_pytorch_does(name, form, exported):
    torch.manual_seed(0)
    model, output, printed = exported(name, form)
    assert printed.err == ""
    assert all(str(output) in line or line.startswith("  ") for line in printed.out.splitlines())
    assert "tolerance 0.0001 + 0.0001 * |value|" in printed.out
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    run = opened(form, output)
    for batch in (1, 2, 5):
        inputs = examples(model, batch)
        with torch.no_grad():
            if isinstance(model, Forecaster):
                memory = inputs[len(inputs) - len(model.memory) :]
                hidden = inputs[1 : len(inputs) - len(memory)]
                hidden = tuple(hidden) if len(hidden) == 2 else hidden[0]
                expected = flat(model(inputs[0], (hidden, memory) if memory else hidden))
                start = run(inputs[0], *map(torch.zeros_like, examples(model, batch, seen=0)[1:]))
                for got, want in zip(start, flat(model(inputs[0])), strict=True):
                    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
            else:
                expected = [model(*inputs)]
        for got, want in zip(run(*inputs), expected, strict=True):
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_safetensors_load_to_the_bit(name, tmp_path, capsys):
    model = save(MODELS[name](), tmp_path / "model.ckpt")
    assert export(tmp_path / "model.ckpt", "safetensors", tmp_path / "weights") == 0
    assert "largest difference from PyTorch 0.0e+00, tolerance 0\n" in capsys.readouterr().out
    loaded = lit_models.load(tmp_path / "weights")
    assert type(loaded) is type(model)
    inputs = examples(model, 3)[:1]
    assert all(map(torch.equal, flat(loaded(*inputs)), flat(model(*inputs))))


@pytest.mark.parametrize("form", ["onnx", "torch_export", "safetensors"])
def test_a_file_says_what_it_is(form, exported):
    found = facts(form, exported("Net", form)[1])
    assert found["model_class"] == "lit_models.Net"
    assert json.loads(found["hyperparameters"])["channels"] == [10, 20]
    assert json.loads(found["class_names"])[3] == "class 3"
    assert json.loads(found["mean"]) + json.loads(found["std"]) == pytest.approx([0.1307, 0.3081])
    assert json.loads(found["inputs"]) == {"images": {"shape": ["batch", 1, 28, 28], "dtype": "uint8"}}
    assert json.loads(found["outputs"]) == {"logits": {"shape": ["batch", 10], "dtype": "float32"}}
    assert found["lit_models"][0].isdigit()


@pytest.mark.parametrize("form", ["onnx", "torch_export"])
@pytest.mark.parametrize("cell", ["RNN", "lstm"])
def test_an_exported_rnn_runs_free_step_by_step(cell, form, exported):
    torch.manual_seed(0)
    model, output, _ = exported(cell, form)
    past = torch.randn(2, 30, 2) * model.normalize.std + model.normalize.mean
    with torch.no_grad():
        expected = model.forecast(past, 8)
    zeros = torch.zeros(model.hparams.num_layers, 2, 12)
    run = opened(form, output)
    prediction, *state = run(past, *[zeros] * (1 + (cell == "lstm")))
    forecast = [prediction[:, -1:]]
    while len(forecast) < 8:
        prediction, *state = run(forecast[-1], *state)
        forecast.append(prediction)
    torch.testing.assert_close(torch.cat(forecast, dim=1), expected, atol=1e-4, rtol=1e-4)


def test_onnx_has_the_operators_that_runtimes_know(exported):
    for name, operator in (("RNN", "GRU"), ("lstm", "LSTM"), ("plain", "RNN")):
        nodes = [node.op_type for node in onnx.load(exported(name, "onnx")[1]).graph.node]
        assert nodes.count(operator) == (1 if name == "RNN" else 2)


def test_images_are_of_the_size_of_the_data(tmp_path, capsys):
    model = MODELS["CNN of any size"]()
    trainer = Trainer(accelerator="cpu", max_steps=1, limit_val_batches=0, **QUIET)
    trainer.fit(model, datamodule=MNISTDataModule(batch_size=2))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    capsys.readouterr()
    assert export(tmp_path / "model.ckpt", "safetensors", tmp_path / "file") == 0
    assert "images: uint8 (batch, 1, 28, 28)" in capsys.readouterr().out
    content = torch.load(tmp_path / "model.ckpt", weights_only=True)
    del content["input_shape"]  # as in a checkpoint of somebody else
    torch.save(content, tmp_path / "model.ckpt")
    assert export(tmp_path / "model.ckpt", "safetensors", tmp_path / "other") == 0
    assert "images: uint8 (batch, 1, 40, 40)" in capsys.readouterr().out


@pytest.mark.slow
def test_files_run_where_this_package_is_not(exported, tmp_path):
    for form in ("onnx", "torch_export"):
        shutil.copy(exported("lstm", form)[1], tmp_path / form)
    script = """
import sys, torch, onnxruntime
x, state = torch.randn(2, 4, 2), torch.zeros(2, 2, 12)
first = torch.export.load("torch_export").module()(x, state, state)
inputs = {"x": x.numpy(), "hidden": state.numpy(), "cell": state.numpy()}
second = onnxruntime.InferenceSession("onnx").run(["prediction", "new_hidden", "new_cell"], inputs)
for one, other in zip(first, second):
    torch.testing.assert_close(one, torch.from_numpy(other), atol=1e-4, rtol=1e-4)
assert not {"lit_models", "lightning"} & set(sys.modules)
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)


def test_what_computes_something_else_is_not_kept(tmp_path, monkeypatch, capsys):
    save(MODELS["RNN"](), tmp_path / "model.ckpt")
    monkeypatch.setattr(
        OnnxRecurrence, "arranged", lambda self, weight: weight
    )  # torch's order of the gates, not ONNX's
    (tmp_path / "old").write_text("what was there")
    args = ["export", f"--ckpt_path={tmp_path / 'model.ckpt'}", "--format=onnx"]
    for name, flags in (("new", []), ("old", ["--overwrite"])):
        message = fails(capsys, *args, f"--output={tmp_path / name}", *flags)
        assert "RNN gives other outputs in onnx" in message
        assert float(message.split("largest difference from PyTorch ")[1].split(",")[0]) > 1e-2
    assert (tmp_path / "old").read_text() == "what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.ckpt", "old"]


def test_weights_that_are_no_numbers_are_not_exported(tmp_path, capsys):
    model = MODELS["Net"]()
    model.classifier[1].bias.data[0] = np.nan
    save(model, tmp_path / "model.ckpt")
    args = [f"--ckpt_path={tmp_path / 'model.ckpt'}", f"--output={tmp_path / 'file'}"]
    for form in ("onnx", "torch_export", "safetensors"):
        assert "largest difference from PyTorch nan" in fails(capsys, "export", *args, f"--format={form}")


def test_bad_input_is_one_line(last, tmp_path, monkeypatch, capsys):
    (tmp_path / "there").write_text("before")
    (tmp_path / "cut.ckpt").write_bytes(last.read_bytes()[:1000])

    def refused(*args, output="new", form="onnx", checkpoint=last):
        options = [f"--ckpt_path={checkpoint}", f"--format={form}", f"--output={tmp_path / output}"]
        return fails(capsys, "export", *options, *args)

    assert "there is there already: give another --output, or --overwrite" in refused(output="there")
    assert "is a folder, or no ordinary file" in refused(output="")
    assert "cannot write" in refused(output="there/new")
    assert "is the checkpoint itself" in refused("--overwrite", output=last)
    assert "did you mean 'onnx'?" in refused(form="onx")
    assert "no checkpoint" in refused(checkpoint="nowhere.ckpt")
    assert "cut short" in refused(checkpoint=tmp_path / "cut.ckpt")
    assert "did you mean '--overwrite'?" in refused("--overwrit")
    assert "there is no value for format, output" in fails(capsys, "export", f"--ckpt_path={last}")
    assert "did you mean 'export'?" in fails(capsys, "exprot")
    for form, package in (("onnx", "onnxscript"), ("safetensors", "safetensors")):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            message = refused(form=form)
        assert f"export to {form} needs the extra export: pip install -e '.[export]' (no {package} here)" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.ckpt", "there"]
    assert (tmp_path / "there").read_text() == "before"


def test_overwrite_replaces(last, tmp_path):
    (tmp_path / "file").write_text("before")
    assert (
        cli.main(
            ["export", f"--ckpt_path={last}", "--format=safetensors", f"--output={tmp_path / 'file'}", "--overwrite"]
        )
        == 0
    )
    assert isinstance(lit_models.load(tmp_path / "file"), Net)


def test_help_lists_the_verb_and_its_options(capsys):
    def listed(*args):
        with pytest.raises(SystemExit):
            cli.main([*args, "--help"])
        return capsys.readouterr().out

    assert "\n    export              Writes a trained model" in listed()
    options = listed("export")
    assert all(
        name in options for name in ("--ckpt_path", "{onnx,torch_export,safetensors}", "--output", "--overwrite")
    )


class Plain(LightningModule):
    """Somebody else's model, which has no export spec."""

    def __init__(self):
        super().__init__()
        self.example_input_array = torch.zeros(1, 3)
        self.layer = nn.Linear(3, 2)

    @torch.autocast("cpu", enabled=False)
    def forward(self, rows):
        return self.layer(rows)


def test_a_model_of_others_is_exported_too():
    spec = export_module.export_spec(Plain())
    assert spec.inputs["rows"].shape == ("batch", 3)
    assert spec.outputs["output"].shape == ("batch", 2)


@LONG
def test_the_head_stays_in_the_model_that_is_exported(exported):
    model, output, _ = exported("FaceEmbedder", "onnx")
    assert tuple(model.head.shape) not in {tuple(weight.dims) for weight in onnx.load(output).graph.initializer}
    assert model.for_inference().head is None
    assert model.head.shape[0] == model.hparams.num_classes == 5
