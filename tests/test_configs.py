"""Every keyword of every config reaches something."""

import contextlib
import hashlib
from collections.abc import Iterator

import pytest
import yaml
from conftest import REPLAY, ROOT, skip_without_extra

from lit_models.cli import main as cli

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
# What does not change a run by its nature.
WITHOUT_EFFECT = {
    "root": "where the data are",
    "path": "where the data are",
    "download": "how the data got there",
    "cache_on_device": "where the data are kept",
    "save_replay": "what a checkpoint holds",
    "test_episodes": "how long a test takes",
    "fused": "how the optimizer's step is computed",
}
# What is refused, if it is changed by itself, and with which words.
REFUSED = {
    ("cnn_mnist", "in_channels"): "the images have 1 channel",
    ("face_lfw", "image_size"): "image_size",
    ("face_lfw", "detect"): "no image of person 0|needs the extra faces",  # the pictures are of noise
}
REFUSED |= {
    ("dqn_pong", "env_id"): "AtariPreprocessing|frame-skipping|cannot make CartPole-v1",
    ("dqn_pong", "frameskip"): "Disable frame-skipping",
}
REFUSED |= {("ppo_pong", name): words for (stem, name), words in REFUSED.items() if stem == "dqn_pong"}
CONTINUOUS = ("ddpg_pendulum", "td3_pendulum", "sac_pendulum", "sac_invertedpendulum")
CONTINUOUS += ("td3_halfcheetah", "sac_halfcheetah")
REFUSED |= {(name, "env_id"): "DQN or PPO takes them" for name in CONTINUOUS}
REFUSED |= {
    ("sac_lunarlander_continuous", "env_id"): "cannot make CartPole-v1",
    ("sac_lunarlander_continuous", "continuous"): "DQN or PPO takes them",
}
OTHERS = {"tanh": "relu", "relu": "tanh", "mse": "huber", "pixel": "permuted_pixel"}
OTHERS |= {"olivetti": "lfw", "lfw": "olivetti"}
REFUSED |= {
    ("vit_mnist", "in_channels"): "the images have 1 channel",
    ("vit_mnist", "image_size"): "not divided by patches",
    ("vit_mnist", "patch_size"): "not divided by patches",
    ("vit_folder", "image_size"): "the images are",
    ("transformer_text", "cycle_momentum"): "has no momentum",
    ("transformer_shakespeare", "cycle_momentum"): "has no momentum",
    ("transformer_gpt2_small", "tokens"): "vocab_size is of byte-pair encoding",
    ("transformer_gpt2_small", "vocab_size"): "kinds of tokens|the 256 bytes",
}
for config in ("rnn_shakespeare", "transformer_shakespeare"):
    REFUSED |= {(config, "tokens"): "of 256 kinds"}
for config in ("rnn_text", "transformer_text", "rnn_shakespeare", "transformer_shakespeare"):
    REFUSED[config, "--model.context_length"] = "cut into windows"
OTHERS |= {
    "characters": "bytes",
    "mean": "class",
    "learned": "rotary",
    "layer": "rms",
    "gelu": "squared_relu",
    "bpe": "bytes",
}
OTHERS |= {"AtariPreprocessing": "GrayscaleObservation", "linear": "cos"}
OTHERS |= {"window": "series", "mae": "mse", "interpolate": "previous"}


def keywords(section: dict, option: str) -> Iterator[tuple[str, object]]:
    """The options that a section of a config sets, with their values."""
    for name, value in section.get("init_args", {}).items():
        if isinstance(value, dict):
            yield from keywords(value, f"{option}.{name}")
        else:
            yield f"{option}.{name}", value


def changes(name: str, value: object) -> list[object]:
    """Other values: one, or of a list one for each of its items."""
    if isinstance(value, list):
        return [[*value[:i], *changes(name, item), *value[i + 1 :]] for i, item in enumerate(value)]
    return [changed(name, value)]


def changed(name: str, value: object) -> object:
    if name == "env_id":
        return "Acrobot-v1" if value == "CartPole-v1" else "CartPole-v1"
    if isinstance(value, bool):
        return not value
    if value is None:
        return 4
    if isinstance(value, str):
        return OTHERS[value]
    if isinstance(value, int):
        return value + 8 if name == "image_size" else value // 2 if value > 1 else value + 1
    return value / 2 or 0.5


def result(*args: str) -> object:
    """All that a short run comes to: weights, metrics, the size of its data, and learning rates."""
    command = cli.CLI(["fit", *args])
    model, trainer = command.model, command.trainer
    weights = hashlib.sha256()
    for value in model.state_dict().values():
        weights.update(value.numpy().tobytes())
    (config,) = trainer.lr_scheduler_configs
    rates = []
    for _ in range(trainer.max_epochs * 50 if config.interval == "epoch" else 0):  # longer than any of these runs
        config.scheduler.step()
        rates += [group["lr"] for group in config.scheduler.optimizer.param_groups]
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if "per_second" not in name}
    replay = getattr(getattr(model, "buffer", None), "nbytes", None)
    return weights.hexdigest(), metrics, trainer.num_training_batches, len(trainer.train_dataloader), rates, replay


def options(path):
    config = yaml.safe_load(path.read_text())
    return [pair for section in ("model", "data") for pair in keywords(config.get(section, {}), f"--{section}")]


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem != "mnist")) for path in CONFIGS]
)
def test_every_keyword_of_a_config_has_an_effect(path, own_data, tmp_path):
    skip_without_extra(path.stem)
    if path.stem == "face_olivetti":
        pytest.importorskip("sklearn", reason="needs the extra face-data")
    batches = 15 if path.stem.startswith(REPLAY) else 4  # an agent updates its target network after some
    flags = ["--trainer.max_epochs=2", f"--trainer.limit_train_batches={batches}", "--trainer.limit_val_batches=1"]
    flags += ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]
    flags += ["--trainer.check_val_every_n_epoch=1", "--trainer.enable_model_summary=false"]
    args = [f"--config={path}", *flags, *own_data.get(path.stem, [])]
    given = dict(arg.partition("=")[::2] for arg in args)
    before = result(*args)
    assert result(*args) == before
    for option, value in options(path):
        name = option.rpartition(".")[2]
        if name not in WITHOUT_EFFECT:
            for another in changes(name, yaml.safe_load(given[option]) if option in given else value):
                words = REFUSED.get((path.stem, option), REFUSED.get((path.stem, name)))
                with pytest.raises(ValueError, match=words) if words else contextlib.nullcontext():
                    assert result(*args, f"{option}={another}") != before, f"{option}={another} is without effect"


def test_what_has_no_effect_is_in_some_config():
    names = {option.rpartition(".")[2] for path in CONFIGS for option, _ in options(path)}
    assert set(WITHOUT_EFFECT) <= names
