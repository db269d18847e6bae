"""Trained models as files that run without this package: ONNX, `torch.export`, or weights as safetensors.

Raw input goes in, as data modules and environments deliver it: scaling is a part of the model, and of the file. A file
is kept only if it computes what the model does in PyTorch.

Legend: shapes are tuples of numbers and of the names of axes that may have any size, `("batch", 1, 28, 28)`.
"""

import contextlib
import copy
import inspect
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn

from lit_models.common.files import atomic_write
from lit_models.common.messages import require_extra
from lit_models.export.recurrence import OnnxRecurrence, Recurrence, ScannedRecurrence
from lit_models.layers import Normalize
from lit_models.module import ExportSpec, LitModule
from lit_models.training.checkpoint import class_path, load
from lit_models.training.runs import version
from lit_models.training.trust import Modules

Format = Literal["onnx", "torch_export", "safetensors"]
Run = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]  # from inputs by name to outputs

NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": (), "safetensors": ("safetensors",)}
TOLERANCE = 1e-4  # absolute, and relative to the value in PyTorch; safetensors holds the weights to the bit
EXPORTED = {"batch": 2, "time": 3, "seen": 4}  # sizes of the axes while exporting; 0 and 1 would become fixed
CHECKED = (  # and while comparing
    {"batch": 1, "time": 1, "seen": 0},
    {"batch": 3, "time": 12, "seen": 1},
    {"batch": 8, "time": 7, "seen": 20},
)


def export(ckpt_path: str, format: Format, output: str, overwrite: bool = False, modules: Modules = None) -> None:
    """Writes a trained model, compared with PyTorch, to a file that takes raw input.

    The batch may have any size, and so may the time of a forecaster or language model. The file also holds the model's
    class and hyperparameters, the names of the classes, mean and standard deviation, and what goes in and comes out.

    Args:
        ckpt_path: The checkpoint.
        format: `onnx` for onnxruntime and others, `torch_export` for `torch.export.load`, `safetensors` for the
            weights, which `lit_models.load` reads.
        output: The file to write.
        overwrite: Whether a file that is there already is replaced.
        modules: Modules of your own that the checkpoint may name classes of, my_module or [my_module, another].
    """
    path = Path(output)
    require_extra("export", f"export to {format}", *NEEDED[format])
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a folder, or no ordinary file: give another --output")
    if path.exists() and Path(ckpt_path).exists() and path.samefile(ckpt_path):
        raise ValueError(f"{path} is the checkpoint itself: give another --output")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already: give another --output, or --overwrite")
    model = load(ckpt_path, modules=modules)
    if isinstance(model, LitModule):
        model = model.for_inference()
    name, tolerance = type(model).__name__, 0.0 if format == "safetensors" else TOLERANCE
    with atomic_write(path, "give another --output") as partial:
        partial.touch()  # not found out after a long export
        try:
            with silence(), torch.no_grad():
                spec = export_spec(model)
                run = EXPORTERS[format](model, partial, spec, metadata(model, spec), modules)
                difference, close = compare(spec, run, tolerance)
        except Exception as error:  # each exporter and runtime has kinds of its own
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"{name} cannot be exported to {format}: {reason}") from error
        allowed = f"{tolerance:g} + {tolerance:g} * |value|" if tolerance else "0"
        found = f"largest difference from PyTorch {difference:.1e}, tolerance {allowed}"
        if not close:
            raise ValueError(f"{name} gives other outputs in {format}, so {path} is not written: {found}")
    print(f"{path}: {name}, {found}")
    for direction, tensors in (("in", spec.inputs), ("out", spec.outputs)):
        for tensor, one in tensors.items():
            print(f"  {direction:3} {tensor}: {type_name(one.dtype)} ({', '.join(map(str, one.shape))})")


def export_spec(model: LightningModule) -> ExportSpec:
    """A model's own export spec; for other LightningModules, that of their `example_input_array`."""
    if not isinstance(model.example_input_array, Tensor):
        raise ValueError("it has no tensor as example_input_array, which its input's shape is taken from")
    return model.export_spec() if hasattr(model, "export_spec") else LitModule.export_spec(model)


def metadata(model: LightningModule, spec: ExportSpec) -> dict[str, str]:
    """Metadata of an exported file, as strings: names and versions, or JSON."""
    facts = {"hyperparameters": dict(model.hparams)}
    for direction, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        facts[direction] = {name: {"shape": one.shape, "dtype": type_name(one.dtype)} for name, one in tensors.items()}
    if getattr(model, "class_names", None) is not None:
        facts["class_names"] = model.class_names
    for module in model.modules():
        if isinstance(module, Normalize):
            facts |= {"mean": module.mean.flatten().tolist(), "std": module.std.flatten().tolist()}
    own = {"model_class": class_path(model), "lit_models": version("lit-models") or "unknown"}
    return own | {name: json.dumps(value) for name, value in facts.items()}


def export_onnx(model: LightningModule, path: Path, spec: ExportSpec, facts: dict[str, str], modules: Modules) -> Run:
    """Writes ONNX, the weights inside, with the facts as its `metadata_props`; returns it as onnxruntime runs it."""
    from onnxruntime import InferenceSession

    network, example, axes = traceable(spec, OnnxRecurrence)
    names = {"input_names": list(spec.inputs), "output_names": list(spec.outputs)}
    program = torch.onnx.export(network, example, dynamo=True, dynamic_shapes=axes, **names)
    program.model.metadata_props.update(facts)
    program.save(path)
    session = InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return tuple(map(torch.from_numpy, outputs))

    return run


def export_program(
    model: LightningModule, path: Path, spec: ExportSpec, facts: dict[str, str], modules: Modules
) -> Run:
    """Writes what `torch.export.load` reads, with the facts as its `extra_files`; returns it as that runs it."""
    network, example, axes = traceable(spec, ScannedRecurrence)
    torch.compiler.reset()  # the loop is compiled, and what an earlier one left behind would limit the time of this one
    program = torch.export.export(network, example, dynamic_shapes=axes)
    torch.export.save(program, path, extra_files=facts)
    return run_network(torch.export.load(path).module())


def export_weights(
    model: LightningModule, path: Path, spec: ExportSpec, facts: dict[str, str], modules: Modules
) -> Run:
    """Writes the weights as safetensors, with the facts as their metadata; returns a model built anew from them."""
    from safetensors.torch import save_file

    # Copies, since it refuses two that share memory, as a tied layer's do.
    save_file({key: value.clone().contiguous() for key, value in model.state_dict().items()}, path, facts)
    return run_network(export_spec(load(path, modules=modules)).network)


EXPORTERS = {"onnx": export_onnx, "torch_export": export_program, "safetensors": export_weights}


def traceable(spec: ExportSpec, kind: type[Recurrence]) -> tuple[nn.Module, tuple[Tensor, ...], tuple[Any, ...]]:
    """A copy of a network with recurrent layers of a kind, an example of its inputs, and their axes of any size."""
    network = copy.deepcopy(spec.network)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.RNNBase):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, kind(module))
    network.requires_grad_(False).eval()
    sizes = {axis: torch.export.Dim(axis) for axis in EXPORTED}
    axes = tuple(
        {index: sizes[axis] for index, axis in enumerate(one.shape) if axis in sizes} for one in spec.inputs.values()
    )
    kinds = [parameter.kind for parameter in inspect.signature(network.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        axes = (axes[0], axes[1:])  # `*state` counts as one argument
    return network, tuple(random_inputs(spec, EXPORTED).values()), axes


def run_network(network: nn.Module) -> Run:
    """A network in PyTorch as a function from inputs by name to outputs."""

    def run(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        outputs = network(*inputs.values())
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return run


def compare(spec: ExportSpec, run: Run, tolerance: float) -> tuple[float, bool]:
    """The largest difference of what was exported from PyTorch on random inputs, and whether all are tolerable."""
    differences, close = [], True
    for sizes in CHECKED:
        inputs = random_inputs(spec, sizes)
        for got, want in zip(run(inputs), run_network(spec.network)(inputs), strict=True):
            differences.append((got - want).abs().max())
            close &= bool(((got - want).abs() <= tolerance + tolerance * want.abs()).all())  # a NaN is not
    return torch.stack(differences).max().item(), close


def random_inputs(spec: ExportSpec, sizes: dict[str, int]) -> dict[str, Tensor]:
    """Random raw inputs by name, with axes of these sizes: integers, or normal numbers of typical mean and std."""
    generator, inputs = torch.Generator().manual_seed(0), {}
    for name, one in spec.inputs.items():
        shape = torch.Size(sizes.get(axis, axis) for axis in one.shape)
        if one.dtype.is_floating_point:
            inputs[name] = torch.randn(shape, generator=generator, dtype=one.dtype) * one.std + one.mean
        else:
            high = min(one.count, 2**7 if one.dtype == torch.int8 else one.count)
            inputs[name] = torch.randint(0, high, shape, generator=generator).to(one.dtype)
    return inputs


def type_name(dtype: torch.dtype) -> str:
    """`uint8` for `torch.uint8`."""
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hides what the exporters print, log and warn of, but not errors."""
    disabled = logging.root.manager.disable
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
