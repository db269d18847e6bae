"""Callbacks that show an agent in TensorBoard's IMAGES tab."""

import contextlib
import io
from typing import TYPE_CHECKING

import numpy as np
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image
from typing_extensions import override

from lit_models.training.internals import file_writer
from rl.envs import make_env
from rl.evaluation import play_episode

if TYPE_CHECKING:
    from rl.agent import Agent


class ReturnPlot(Callback):
    """Draws, when training ends, `returns`: mean episode returns over environment steps, in training and greedy."""

    @override
    def on_train_end(self, trainer: Trainer, pl_module: "Agent") -> None:
        from lit_models.training import figures, plots  # matplotlib takes half a second to import

        returns = [*getattr(pl_module, "train_returns", ()), *getattr(pl_module, "eval_returns", ())]
        for writer in plots.tensorboard_writers(trainer) if returns else []:
            figure = figures.plot_returns(pl_module.train_returns, pl_module.eval_returns)
            writer.add_figure("returns", figure, pl_module.env_steps)


class EpisodeVideo(Callback):
    """Shows, after every validation, `eval/episode`: a greedy episode as an animated GIF. Needs the extra `video`."""

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: "Agent") -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        from lit_models.training.plots import tensorboard_writers

        writers = [] if trainer.sanity_checking else tensorboard_writers(trainer)
        if not writers or not hasattr(pl_module, "env_settings"):
            return
        frames: list[np.ndarray] = []
        with contextlib.closing(make_env(**pl_module.env_settings, render=True)) as env:
            seed, most = pl_module.seed_for("eval"), pl_module.hparams.eval_max_steps
            play_episode(env, pl_module.policy, seed, frames, most)
            content = encode_gif(frames, env.metadata.get("render_fps", 30))
        height, width, _ = frames[0].shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        for writer in writers:
            summary = Summary(value=[Summary.Value(tag="eval/episode", image=image)])
            file_writer(writer).add_summary(summary, pl_module.env_steps)


def encode_gif(frames: list[np.ndarray], frames_per_second: float) -> bytes:
    """Images `(height, width, 3)` as an animated GIF."""
    content, images = io.BytesIO(), [Image.fromarray(frame) for frame in frames]
    duration = 1000 / frames_per_second  # milliseconds
    images[0].save(content, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return content.getvalue()
