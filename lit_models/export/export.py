"""Trained models as files that run without this package: ONNX, `torch.export`, or weights as safetensors.

Raw input goes in, as data modules and environments deliver it: scaling is a part of the model, and of the file. A file
is kept only if it computes what the model does in PyTorch.

Legend: shapes are tuples of numbers and of the names of axes that may have any size, `("batch", 1, 28, 28)`.
"""

import contextlib
import copy
import importlib
import importlib.util
import inspect
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor, nn

from lit_models.classifier import Classifier
from lit_models.export.recurrence import OnnxRecurrence, Recurrence, ScannedRecurrence, with_recurrence
from lit_models.faces.face_embedder import FaceEmbedder
from lit_models.rnn import RNN
from lit_models.training.checkpoint import UNFIT, build_model, class_path, load, read_model
from lit_models.training.runs import version
from lit_models.training.trust import Modules, refuse_foreign

Format = Literal["onnx", "torch_export", "safetensors"]
Shape = tuple[int | str, ...]
Run = Callable[..., tuple[Tensor, ...]]

NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": (), "safetensors": ("safetensors",)}
TOLERANCE = 1e-4  # absolute, and relative to the value in PyTorch; safetensors holds the weights to the bit
EXPORTED = {"batch": 2, "time": 3}  # sizes of the axes while exporting; 0 and 1 would become fixed
CHECKED = ({"batch": 1, "time": 1}, {"batch": 3, "time": 20}, {"batch": 8, "time": 7})  # and while comparing


class Interface(NamedTuple):
    """What goes into an exported model, and what comes out: the shape and type of each tensor by name, in order."""

    inputs: dict[str, tuple[Shape, torch.dtype]]
    outputs: dict[str, tuple[Shape, torch.dtype]]


class Stateful(nn.Module):
    """An RNN with its hidden state as tensors of their own, one or, of the LSTM, two."""

    def __init__(self, model: RNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor | None = None) -> tuple[Tensor, ...]:
        """Predictions `(batch, time, output_dim)`, and the new state, each `(num_layers, batch, hidden_dim)`."""
        prediction, state = self.model(x, hidden if cell is None else (hidden, cell))
        return (prediction, state) if cell is None else (prediction, *state)


def export(ckpt_path: str, format: Format, output: str, overwrite: bool = False, modules: Modules = None) -> None:
    """Writes a trained model, compared with PyTorch, to a file that takes raw input.

    The batch may have any size, and so may the time of an RNN. The file also holds the model's class and
    hyperparameters, the names of the classes, mean and standard deviation, and what goes in and comes out.

    Args:
        ckpt_path: The checkpoint.
        format: `onnx` for onnxruntime and others, `torch_export` for `torch.export.load`, `safetensors` for the
            weights, which `lit_models.load` reads.
        output: The file to write.
        overwrite: Whether a file that is there already is replaced.
        modules: Modules of your own that the checkpoint may name classes of, my_module or [my_module, another].

    Raises:
        FileNotFoundError: There is no such checkpoint.
        OSError: The file cannot be written.
        ValueError: The extra `export` is missing; the checkpoint is damaged, or of an unknown class; the file is there
            already, or is the checkpoint itself; what was exported doesn't compute what the model does.
    """
    path, partial = Path(output), Path(f"{output}.partial")
    missing = [package for package in NEEDED[format] if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f"export to {format} needs the extra export: pip install -e '.[export]' (no {', '.join(missing)} here)"
        )
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a folder, or no ordinary file: give another --output")
    if path.exists() and Path(ckpt_path).exists() and path.samefile(ckpt_path):
        raise ValueError(f"{path} is the checkpoint itself: give another --output")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already: give another --output, or --overwrite")
    checkpoint = read_model(ckpt_path)
    model = build_model(checkpoint, ckpt_path, modules=modules)
    if isinstance(model, FaceEmbedder):
        model.remove_head()
    if isinstance(model, Classifier):
        refuse_foreign({"class_path": checkpoint.get("data_class")}, ckpt_path, modules)
    name, interface = type(model).__name__, describe(model, checkpoint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}): give another --output") from error
    try:
        tolerance = 0.0 if format == "safetensors" else TOLERANCE
        try:
            with silence(), torch.no_grad():
                WRITERS[format](model, partial, interface, metadata(model, interface))
                difference, close = compare(model, RUNNERS[format](partial, modules), interface, tolerance)
        except Exception as error:  # each exporter and runtime has kinds of its own
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"{name} cannot be exported to {format}: {reason}") from error
        allowed = f"{tolerance:g} + {tolerance:g} * |value|" if tolerance else "0"
        found = f"largest difference from PyTorch {difference:.1e}, tolerance {allowed}"
        if not close:
            raise ValueError(f"{name} gives other outputs in {format}, so {path} is not written: {found}")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{path}: {name}, {found}")
    for direction, tensors in (("in", interface.inputs), ("out", interface.outputs)):
        for tensor, (shape, dtype) in tensors.items():
            print(f"  {direction:3} {tensor}: {type_name(dtype)} ({', '.join(map(str, shape))})")


def describe(model: LightningModule, checkpoint: dict[str, Any]) -> Interface:
    """What goes into a model and comes out: images of the size of its data, series and state, or its example input.

    Raises:
        ValueError: The model has no `example_input_array` to tell its input.
    """
    if isinstance(model, RNN):
        own = model.hparams
        names = ("hidden", "cell") if own.cell == "lstm" else ("hidden",)
        state = ((own.num_layers, "batch", own.hidden_dim), torch.float32)
        return Interface(
            {"x": (("batch", "time", own.input_dim), torch.float32)} | dict.fromkeys(names, state),
            {"prediction": (("batch", "time", own.output_dim), torch.float32)}
            | {f"new_{name}": state for name in names},
        )
    example = model.example_input_array
    if not isinstance(example, Tensor):
        raise ValueError(f"{type(model).__name__} has no example_input_array, a tensor, that tells its input")
    shape = example.shape[1:]
    if isinstance(model, Classifier):
        shape = data_shape(checkpoint) or shape
    with torch.no_grad():
        result = model(example.new_zeros(1, *shape))
    name = next(iter(inspect.signature(model.forward).parameters))
    outputs = {Classifier: "logits", FaceEmbedder: "embeddings"}
    output = next((word for kind, word in outputs.items() if isinstance(model, kind)), "output")
    output = "values" if hasattr(model, "num_actions") else output
    return Interface({name: (("batch", *shape), example.dtype)}, {output: (("batch", *result.shape[1:]), result.dtype)})


def data_shape(checkpoint: dict[str, Any]) -> tuple[int, int, int] | None:
    """An image's `(channels, height, width)` in the data that a checkpoint records; None where they don't tell."""
    module, _, name = (checkpoint.get("data_class") or "").rpartition(".")
    if not module:
        return None
    try:
        kind = getattr(importlib.import_module(module), name)
        if not issubclass(kind, LightningDataModule):  # a function would be called with what the checkpoint says
            return None
        data = kind(**(checkpoint.get("datamodule_hyper_parameters") or {}))
    except (ImportError, OSError, ValueError, *UNFIT):  # the data may be on another machine
        return None
    return getattr(data, "shape", None)


def metadata(model: LightningModule, interface: Interface) -> dict[str, str]:
    """What a file says of itself, as strings: names, or JSON.

    The keys are `model_class`, `hyperparameters`, `inputs` and `outputs` (shape and type by name), `lit_models`, the
    version of this package, and where the model has them, `class_names`, `mean` and `std`.
    """
    facts = {
        "hyperparameters": dict(model.hparams),
        "inputs": {name: {"shape": shape, "dtype": type_name(dtype)} for name, (shape, dtype) in interface[0].items()},
        "outputs": {name: {"shape": shape, "dtype": type_name(dtype)} for name, (shape, dtype) in interface[1].items()},
    }
    if getattr(model, "class_names", None) is not None:
        facts["class_names"] = model.class_names
    for name in ("mean", "std"):
        if isinstance(getattr(model, name, None), Tensor):
            facts[name] = getattr(model, name).flatten().tolist()
    own = {"model_class": class_path(model), "lit_models": version("lit-models") or "unknown"}
    return own | {name: json.dumps(value) for name, value in facts.items()}


def write_onnx(model: LightningModule, path: Path, interface: Interface, facts: dict[str, str]) -> None:
    """Writes ONNX, the weights inside, with the facts as its `metadata_props`."""
    network, example, axes = traceable(model, interface, OnnxRecurrence)
    program = torch.onnx.export(
        network,
        example,
        dynamo=True,
        dynamic_shapes=axes,
        input_names=list(interface.inputs),
        output_names=list(interface.outputs),
    )
    program.model.metadata_props.update(facts)
    program.save(path)


def write_torch_export(model: LightningModule, path: Path, interface: Interface, facts: dict[str, str]) -> None:
    """Writes what `torch.export.load` reads, with the facts as its `extra_files`."""
    network, example, axes = traceable(model, interface, ScannedRecurrence)
    torch.compiler.reset()  # the loop is compiled, and what an earlier one left behind would limit the time of this one
    program = torch.export.export(network, example, dynamic_shapes=axes)
    torch.export.save(program, path, extra_files=facts)


def write_safetensors(model: LightningModule, path: Path, interface: Interface, facts: dict[str, str]) -> None:
    """Writes the weights, with the facts as their metadata."""
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path, facts)


def traceable(
    model: LightningModule, interface: Interface, kind: type[Recurrence]
) -> tuple[nn.Module, tuple[Tensor, ...], tuple[dict[int, torch.export.Dim], ...]]:
    """A copy of a model with recurrent layers of a kind, an example of its inputs, and their axes of any size."""
    network: nn.Module = with_recurrence(copy.deepcopy(model), kind).requires_grad_(False)
    network = Stateful(network).eval() if isinstance(model, RNN) else network
    sizes = {axis: torch.export.Dim(axis) for axis in EXPORTED}
    axes = tuple(
        {place: sizes[axis] for place, axis in enumerate(shape) if axis in sizes}
        for shape, _ in interface.inputs.values()
    )
    return network, tuple(draw(model, interface, EXPORTED).values()), axes


def run_onnx(path: Path, modules: Modules) -> Run:
    """What computes the outputs from the inputs by name, in onnxruntime."""
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda **inputs: tuple(
        torch.from_numpy(output)
        for output in session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    )


def run_torch_export(path: Path, modules: Modules) -> Run:
    """The same, of a program of `torch.export`."""
    module = torch.export.load(path).module()
    return lambda **inputs: as_tuple(module(*inputs.values()))


def run_safetensors(path: Path, modules: Modules) -> Run:
    """The same, of a model built anew."""
    return run_model(load(path, modules=modules))


def run_model(model: LightningModule) -> Run:
    """The same, of a model."""
    network = Stateful(model) if isinstance(model, RNN) else model
    return lambda **inputs: as_tuple(network(**inputs))


WRITERS = {"onnx": write_onnx, "torch_export": write_torch_export, "safetensors": write_safetensors}
RUNNERS = {"onnx": run_onnx, "torch_export": run_torch_export, "safetensors": run_safetensors}


def compare(model: LightningModule, run: Run, interface: Interface, tolerance: float) -> tuple[float, bool]:
    """The largest difference of what was exported from the model, on random input, and whether all are tolerable.

    Args:
        model: The model.
        run: Runs what was exported.
        interface: What goes in.
        tolerance: An output may be off by it, and by this share of the model's own.
    """
    differences, close = [], True
    for sizes in CHECKED:
        inputs = draw(model, interface, sizes)
        for got, want in zip(run(**inputs), run_model(model)(**inputs), strict=True):
            differences.append((got - want).abs().max())
            close &= bool(((got - want).abs() <= tolerance + tolerance * want.abs()).all())  # a NaN is not
    return torch.stack(differences).max().item(), close


def draw(model: LightningModule, interface: Interface, sizes: dict[str, int]) -> dict[str, Tensor]:
    """Random raw inputs by name, with axes of these sizes: bytes, normal numbers, or rows in a series' own units."""
    generator, inputs = torch.Generator().manual_seed(0), {}
    for name, (shape, dtype) in interface.inputs.items():
        numbers = torch.Size(sizes.get(axis, axis) for axis in shape)
        if dtype.is_floating_point:
            inputs[name] = torch.randn(numbers, generator=generator, dtype=dtype)
        else:
            inputs[name] = torch.randint(0, 2**7 if dtype == torch.int8 else 2**8, numbers, generator=generator).to(
                dtype
            )
    if isinstance(model, RNN):
        inputs["x"] = inputs["x"] * model.std + model.mean
    return inputs


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One output or several, as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def type_name(dtype: torch.dtype) -> str:
    """`uint8` for `torch.uint8`."""
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps what the exporters print, warn of and log to themselves; errors get through."""
    disabled = logging.root.manager.disable
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
