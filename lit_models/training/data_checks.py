"""Checks that data fit a model: one message for each mismatch, with the option that mends it."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

import lit_models
from lit_models.common.messages import format_list

if TYPE_CHECKING:
    from lit_models.classifier import Classifier
    from lit_models.faces.face_embedder import FaceEmbedder
    from lit_models.forecaster import Forecaster
    from lit_models.module import LitModule


def check_task(model: "LitModule", data: Any) -> None:
    """Raises a ValueError where a data module is for another task than the model."""
    kind, task = type(model), getattr(data, "task", None)
    if task is None and kind.task in ("classification", "forecasting"):  # other people's data
        task = "forecasting" if hasattr(data, "num_features") else None
        task = "classification" if task is None and hasattr(data, "num_classes") else task
    if None in (task, kind.task) or task in {kind.task, *kind.data_tasks}:
        return
    public = {name: getattr(lit_models, name) for name in lit_models.__all__}
    kinds = {name: one for name, one in public.items() if getattr(one, "task", None) == task}
    bases = {base for one in kinds.values() for base in one.__mro__[1:]}
    names = [name for name, one in kinds.items() if one not in bases]
    hint = f", or --model {' or '.join(', '.join(names).rsplit(', ', 1))}" if names else ""
    raise ValueError(
        f"{type(data).__name__} is for {task}, but {kind.__name__} for {kind.task}: choose other data{hint}"
    )


def check_images(model: "Classifier | FaceEmbedder", shape: torch.Size) -> None:
    """Raises a ValueError where a model doesn't take images of this shape."""
    name = type(model).__name__
    if len(shape) != 4:
        raise ValueError(f"{name} takes images (batch, channels, height, width), not a tensor {tuple(shape)}")
    _, channels, height, width = shape
    if channels != model.in_channels:
        raise ValueError(
            f"the images have {channels} channel(s), but in_channels of {name} is {model.in_channels}: to train on "
            f"them, set model.in_channels to {channels}"
        )
    first, last = model.sizes[0], model.sizes[-1]
    if min(height, width) < first or max(height, width) > last:  # a range's `in` cannot be compiled for several sizes
        sizes = f"{first}" if first == last else f"{first} or more" if last > 10**6 else f"{first} to {last}"
        hint = ", or set model.image_size" if "image_size" in model.hparams else ""
        raise ValueError(f"the images are {height}x{width} pixels, but {name} takes {sizes} along each side{hint}")


def images_and_labels(model: "LitModule", batch: Any) -> tuple[Tensor, Tensor]:
    """A batch as images and int64 labels `(batch,)`; a ValueError, if it is none."""
    if not is_pair(batch) or batch[1].is_floating_point() or batch[1].flatten().shape != batch[0].shape[:1]:
        raise ValueError(
            f"a batch is {describe(batch)}: {type(model).__name__} takes pairs (images, labels), images (batch, "
            "channels, height, width), uint8 in 0..255 or float in 0..1, and labels (batch,), integers from 0"
        )
    return batch[0], batch[1].view(-1).long()


def images_and_names(model: "LitModule", batch: Any) -> tuple[Tensor, Any]:
    """A batch to predict as images and their labels or names, None where it has only images."""
    images, *names = batch if isinstance(batch, list | tuple) and batch else (batch,)
    known = not names or (isinstance(names[0], Tensor | list | tuple) and len(names[0]) == len(images))
    if not isinstance(images, Tensor) or len(names) > 1 or not known:
        raise ValueError(
            f"a batch is {describe(batch)}: {type(model).__name__} predicts images (batch, channels, height, width), "
            "alone or in pairs with as many labels or names"
        )
    if not names or not isinstance(names[0], Tensor):
        return images, names[0] if names else None
    return images, names[0].view(-1) if names[0].shape == (len(images), 1) else names[0]


def context_and_target(model: "LitModule", batch: Any) -> tuple[Tensor, Tensor]:
    """A batch as context and target, a ValueError if it is no pair of them."""
    if not is_pair(batch) or {part.dim() for part in batch} != {3} or not batch[1].shape[1]:
        raise ValueError(
            f"a batch is {describe(batch)}: {type(model).__name__} takes pairs (context, target), the rows (batch, "
            "time, columns) to look back on and those after them, NaN where they are unknown"
        )
    if {part.shape[2] for part in batch} != {model.hparams.input_dim} or len(batch[0]) != len(batch[1]):
        raise ValueError(
            f"a batch is {describe(batch)}, but input_dim of {type(model).__name__} is {model.hparams.input_dim}: set "
            "model.input_dim to the number of columns of both"
        )
    return batch[0], batch[1]


def is_pair(batch: Any) -> bool:
    """Whether a batch is two tensors."""
    return isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)


def describe(batch: Any) -> str:
    """What a batch is, in a few words, for error messages."""
    if isinstance(batch, Tensor):
        return f"a tensor {tuple(batch.shape)} of {str(batch.dtype).removeprefix('torch.')}"
    if isinstance(batch, dict):
        return f"a dictionary of {format_list([str(key) for key in batch])}"
    if isinstance(batch, list | tuple):
        parts = (describe(part) if isinstance(part, Tensor) else type(part).__name__ for part in batch)
        return f"a list of {len(batch)} ({format_list(list(parts))})"
    return f"a {type(batch).__name__}"


def warn_of_range(model: "Classifier", images: Tensor) -> None:
    """Warns once of float images that are not in 0..1, and of integers that hardly are in 0..255."""
    if model.warned_of_range or images.dtype == torch.uint8 or not images.numel():
        return
    low, high = (value.item() for value in images.float().aminmax())
    floats = images.is_floating_point()  # with some tolerance for what has been interpolated
    if not (low >= -0.1 and high <= 1.1 if floats else low >= 0 and 1 < high <= 255):
        model.warned_of_range = True
        kind = "floats" if floats else str(images.dtype).removeprefix("torch.")
        rank_zero_warn(
            f"the images are {kind} from {low:.4g} to {high:.4g}: {type(model).__name__} takes uint8 in 0..255 or "
            "float in 0..1, and normalizes them itself by its mean and std: divide by 255, or leave normalization out"
        )


def match_classes(model: "Classifier", data: Any) -> None:
    """Raises a ValueError where the data have other classes than the model; the model takes over their names."""
    names = getattr(data, "class_names", None)
    names = None if names is None else [str(name) for name in names]
    classes = getattr(data, "num_classes", model.num_classes if names is None else len(names))
    if classes != model.num_classes:
        raise ValueError(
            f"{type(data).__name__} has {classes} classes, but num_classes of {type(model).__name__} is "
            f"{model.num_classes}: to train on them, set model.num_classes to {classes}"
        )
    if model.class_names is None:
        model.class_names = model.hparams.class_names = names
    elif names is not None and names != model.class_names:
        raise ValueError(
            f"the classes of {type(data).__name__} are {format_list(names)}, but those of the model are "
            f"{format_list(model.class_names)}: give the data that it was trained on, or set model.class_names to "
            "theirs"
        )


def balanced_weights(model: "Classifier", data: Any) -> Tensor:
    """The weight of each class `(num_classes,)`: the inverse of its frequency in a data module's training labels.

    Over all images, the mean weight is 1.
    """
    labels = getattr(getattr(data, "train_set", None), "labels", None)
    if not isinstance(labels, Tensor):
        source = "a plain data loader" if data is None else type(data).__name__
        raise ValueError(
            f"class_weights is balanced, but {source} has no train_set with labels to count: give a list of weights, "
            "one per class"
        )
    counts = labels.cpu().bincount(minlength=model.num_classes)[: model.num_classes]
    return len(labels) / (counts.clamp(min=1) * (counts > 0).sum())


def match_scale(model: "LitModule", saved: dict[str, Any]) -> None:
    """Warns where a checkpoint's model has another mean, std or season; the model takes over what it has not."""
    for name in ("mean", "std", "season"):
        own, theirs = model.hparams.get(name), saved.get(name)
        if own is None and theirs is not None and name in model.from_data:
            model.hparams[name] = theirs
            if name != "season":
                model.normalize.fill(name, theirs)
        elif isinstance(own, int | float | list) and isinstance(theirs, int | float | list) and own != theirs:
            rank_zero_warn(f"{name} is {own}, but {theirs} in the checkpoint: lit_models.load(path) takes that")


def match_columns(model: "Forecaster", data: Any) -> None:
    """Raises a ValueError where a model doesn't forecast series of the data's numbers of columns."""
    hp = model.hparams
    columns = getattr(data, "num_features", hp.input_dim)
    known = getattr(data, "num_known", hp.known_dim)
    targets = getattr(data, "num_targets", min(hp.output_dim, columns - known))
    dims = {"input_dim": columns, "output_dim": targets, "known_dim": known}
    if any(hp[name] != number for name, number in dims.items()):
        kinds = f", {targets} to forecast and {known} known ahead" if known or targets < columns else ""
        raise ValueError(
            f"{'the data' if data is None else type(data).__name__} has {columns} column(s){kinds}, but "
            f"{', '.join(f'{name} is {hp[name]}' for name in dims)}: to forecast, set "
            f"{', '.join(f'model.{name} to {number}' for name, number in dims.items() if hp[name] != number)}"
        )


def check_window(model: "Forecaster", data: Any) -> None:
    """Raises a ValueError where a forecaster's season does not fit into a context, or a value has no logarithm."""
    length = getattr(getattr(data, "hparams", None), "context_length", None)
    if length is not None and model.season > 1 and length <= model.season:
        raise ValueError(
            f"a season of {model.season} rows does not fit into a context of {length}: make data.context_length "
            f"{model.season + 1} or more, such as {2 * model.season + 2}, or set model.season to 1"
        )
    series = getattr(data, "series", None)
    series = None if series is None else series[:, : model.hparams.output_dim]
    if model.hparams.log and series is not None and (series <= 0).any():
        row, column = (series <= 0).nonzero()[0].tolist()
        raise ValueError(
            f"column {data.column_names[column]!r} has {series[row, column]:g}, which has no logarithm: set model.log "
            "to false"
        )


def people_to_train_on(model: "FaceEmbedder", data: Any) -> int:
    """How many people the data have, of which `num_classes` must be the number, if it is given."""
    expected = model.hparams.num_classes
    people = getattr(data, "num_classes", expected)
    if people is None:
        raise ValueError("the data do not say how many people they show: set model.num_classes")
    if expected not in (None, people):
        raise ValueError(
            f"{type(data).__name__} has {people} people to train on, but num_classes of {type(model).__name__} is "
            f"{expected}: leave model.num_classes out, or lit_models.load(path, num_classes={people}) for a fresh head"
        )
    return people
