"""Agents that train for a second or two, and a Trainer that prints nothing."""

from functools import partial

import torch
from lightning import Trainer, seed_everything
from torch.optim.lr_scheduler import LinearLR

from rl import DQN

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
