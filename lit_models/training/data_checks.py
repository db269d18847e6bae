"""Checks that data fit a model: one message for each mismatch, with the option that mends it."""

from typing import TYPE_CHECKING, Any

import torch

import lit_models
from lit_models.common.messages import format_list

if TYPE_CHECKING:
    from lit_models.classifier import Classifier
    from lit_models.faces.face_embedder import FaceEmbedder
    from lit_models.module import LitModule
    from lit_models.rnn import RNN


def check_task(model: "LitModule", data: Any) -> None:
    """Raises a ValueError where a data module is for another task than the model."""
    kind, task = type(model), getattr(data, "task", None)
    if task is None and kind.task in ("classification", "forecasting"):  # other people's data
        task = "forecasting" if hasattr(data, "num_features") else None
        task = "classification" if task is None and hasattr(data, "num_classes") else task
    if None in (task, kind.task) or task in {kind.task, *kind.data_tasks}:
        return
    kinds = {name: getattr(lit_models, name) for name in lit_models.__all__}
    names = [name for name, one in kinds.items() if getattr(one, "task", None) == task and "forward" in vars(one)]
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
    if height not in model.sizes or width not in model.sizes:
        first, last = model.sizes[0], model.sizes[-1]
        sizes = f"{first}" if first == last else f"{first} or more" if last > 10**6 else f"{first} to {last}"
        hint = ", or set model.image_size" if "image_size" in model.hparams else ""
        raise ValueError(f"the images are {height}x{width} pixels, but {name} takes {sizes} along each side{hint}")


def match_classes(model: "Classifier", data: Any) -> None:
    """Raises a ValueError where the data have other classes than the model; the model takes over their names."""
    names = getattr(data, "class_names", None)
    names = None if names is None else list(names)
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


def match_columns(model: "RNN", data: Any) -> None:
    """Raises a ValueError where a model doesn't forecast series of the data's number of columns."""
    hp = model.hparams
    features = getattr(data, "num_features", hp.input_dim)
    if features != hp.input_dim or hp.output_dim != hp.input_dim:
        raise ValueError(
            f"{'the data' if data is None else type(data).__name__} has {features} column(s), but input_dim is "
            f"{hp.input_dim} and output_dim {hp.output_dim}: to forecast, set model.input_dim and model.output_dim to "
            f"{features}"
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
