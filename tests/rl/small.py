"""Agents that train for a second or two, and a Trainer that prints nothing."""

from functools import partial

import numpy as np
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from torch.optim.lr_scheduler import LinearLR

from rl import DQN
from rl.agent import COUNTERS

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def small_agent(**options):
    small = {"num_envs": 4, "steps_per_epoch": 200, "learning_starts": 100, "buffer_size": 500, "eval_episodes": 2}
    return DQN(
        **{"gradient_steps": 2, "batch_size": 16, "epsilon_steps": 700, "target_update_interval": 3} | small | options,
        lr_scheduler=partial(LinearLR, start_factor=1.0, end_factor=0.1, total_iters=4),
    )


def small_actor_critic(kind, **options):
    small = {"env_id": "Goals-v0", "num_envs": 4, "steps_per_epoch": 100, "learning_starts": 40, "buffer_size": 500}
    few = {"gradient_steps": 4, "batch_size": 16, "eval_episodes": 2, "hidden_sizes": (8,)}
    return kind(**small | few | options)


def learn_goals(kind, **options):
    """A trained agent; best are the actions 0 in state 0, worth 1 + gamma, and 2 in state 1, worth 1."""
    seed_everything(0)
    small = {"num_envs": 16, "learning_starts": 400, "buffer_size": 5000, "steps_per_epoch": 3000}
    fast = {"hidden_sizes": (16,), "batch_size": 64, "tau": 0.05, "optimizer": partial(torch.optim.Adam, lr=0.01)}
    agent = small_actor_critic(kind, **small | fast | {"gamma": 0.9, "gradient_steps": 6} | options)
    Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(agent)
    return agent


class Kept(Checkpoint):
    """Keeps a checkpoint of an epoch, from the end of its evaluation or, as `last.ckpt` is, from its own end."""

    def __init__(self, epoch, path, hook="on_validation_end"):
        self.epoch, self.path, self.hook = epoch, path, hook

    def keep(self, trainer, hook):
        if (trainer.current_epoch, self.hook) == (self.epoch, hook) and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            self.keep(trainer, "on_train_batch_end")

    def on_validation_end(self, trainer, pl_module):
        self.keep(trainer, "on_validation_end")

    def on_train_epoch_end(self, trainer, pl_module):
        self.keep(trainer, "on_train_epoch_end")


def check_resume(make, tmp_path):
    """That runs of an agent of `make`, resumed within an epoch, after its evaluation and at its end, end alike."""

    def train(path=None, callbacks=()):
        seed_everything(3)
        agent = make()
        trainer = Trainer(max_epochs=4, callbacks=[*callbacks], enable_checkpointing=bool(callbacks), **QUIET)
        trainer.fit(agent, ckpt_path=path, weights_only=True)
        np.random.random(), torch.rand(1)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        return torch.load(tmp_path / "end.ckpt", weights_only=True)

    hooks = ("on_train_batch_end", "on_validation_end", "on_train_epoch_end")
    whole = train(callbacks=[Kept(1, tmp_path / hook, hook) for hook in hooks])
    for hook in hooks:
        torch.rand(100)  # what another process would not have drawn
        resumed = train(tmp_path / hook)
        assert whole["global_step"] == resumed["global_step"]
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "processes", *COUNTERS):
            same(whole[key], resumed[key], f"{hook}: {key}")


def same(one, other, where):
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, parts in enumerate(zip(one, other, strict=True)):
            same(*parts, f"{where}.{number}")
    else:
        assert one == other, where
