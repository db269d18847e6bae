"""Every model, with small data of its own: one row per model, over which the property suite runs."""

import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from drawn import noise_people
from lightning import LightningDataModule, LightningModule

from datamodules import FaceDataModule, MNISTDataModule, TextDataModule, TimeSeriesDataModule
from lit_models import (
    CNN,
    RNN,
    FaceEmbedder,
    Net,
    RNNClassifier,
    RNNLanguageModel,
    Transformer,
    TransformerForecaster,
    ViT,
)
from rl import DDPG, DQN, PPO, SAC

NONE = MappingProxyType({})


class Model(NamedTuple):
    kind: type[LightningModule]
    options: Mapping[str, Any] = NONE  # what makes it small
    random: Mapping[str, Any] = NONE  # what makes it draw at random in training, or remember
    data: Callable[..., LightningDataModule | None] = lambda **options: None
    augmented: Mapping[str, Any] = NONE  # likewise, of its data
    steps: int = 1  # after which every parameter has had a gradient

    def make(self, **options: Any) -> LightningModule:
        return self.kind(**{**self.options, **options})


@cache
def people() -> str:
    return str(noise_people(Path(tempfile.mkdtemp()) / "faces", people=8, pictures=12))


def faces(**options: Any) -> FaceDataModule:
    return FaceDataModule(people(), image_size=32, identities_per_batch=4, images_per_identity=2, **options)


def digits(**options: Any) -> MNISTDataModule:
    return MNISTDataModule(**{"batch_size": 8} | options)


def series(**options: Any) -> TimeSeriesDataModule:
    return TimeSeriesDataModule(length=1000, batch_size=8, **options)


def text(**options: Any) -> TextDataModule:
    return TextDataModule(context_length=16, batch_size=8, windows_per_epoch=800, **options)


AGENT = {"num_envs": 4, "steps_per_epoch": 64, "eval_episodes": 2, "test_episodes": 2}
REPLAY = {"buffer_size": 1000, "learning_starts": 64, "batch_size": 16}
# The learning rates of some tests would make values of Pendulum's rewards infinite.
ACTOR_CRITIC = AGENT | REPLAY | {"env_id": "VectorPendulum-v1", "max_grad_norm": 1.0}
MODELS = {
    "Net": Model(Net, data=digits, augmented={"rotation": 10, "shift": 2}),
    "CNN": Model(CNN, {"in_channels": 1, "batch_norm": True}, {"dropout": 0.5}, digits, {"scale": 0.1}),
    "RNNClassifier": Model(RNNClassifier, {"num_layers": 2}, {"dropout": 0.5}, digits),
    "RNN": Model(RNN, {"hidden_dim": 8, "residual": True}, {"dropout": 0.5}, series),
    "TransformerForecaster": Model(
        TransformerForecaster,
        {"dim": 8, "depth": 2, "heads": 2, "residual": True},
        {"dropout": 0.5},
        series,
        steps=2,  # the branches start at zero
    ),
    "ViT": Model(
        ViT,
        {"in_channels": 1, "image_size": 28, "patch_size": 7, "dim": 64, "depth": 2, "heads": 4},
        {"dropout": 0.5, "drop_path": 0.5},
        digits,
        steps=2,  # the last layer starts at zero
    ),
    "RNNLanguageModel": Model(
        RNNLanguageModel, {"context_length": 16, "embedding_dim": 8, "hidden_dim": 16}, {"dropout": 0.5}, text
    ),
    "Transformer": Model(
        Transformer,
        {"context_length": 16, "dim": 16, "depth": 2, "heads": 2, "norm": "layer", "bias": True},
        {"dropout": 0.5},
        text,
        steps=3,  # the last layer and the branches start at zero
    ),
    "FaceEmbedder": Model(
        FaceEmbedder,
        {"image_size": 32},
        data=faces,
        augmented={"flip": True, "rotation": 10, "erasing": 0.5},
        steps=2,  # a residual block that starts at zero passes none on in the first
    ),
    "DQN": Model(DQN, AGENT | REPLAY),
    "PPO": Model(PPO, AGENT | {"rollout_steps": 8, "batch_size": 16, "epochs": 2, "normalize_observations": True}),
    "DDPG": Model(DDPG, ACTOR_CRITIC),
    "SAC": Model(SAC, ACTOR_CRITIC),
}
