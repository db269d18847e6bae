"""A DQN that trains for a second, and a Trainer that prints nothing."""

from functools import partial

from torch.optim.lr_scheduler import LinearLR

from rl import DQN

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def small_agent(**options):
    small = {"num_envs": 4, "steps_per_epoch": 200, "learning_starts": 100, "buffer_size": 500, "eval_episodes": 2}
    return DQN(
        **{"gradient_steps": 2, "batch_size": 16, "epsilon_steps": 700, "target_update_interval": 3} | small | options,
        lr_scheduler=partial(LinearLR, start_factor=1.0, end_factor=0.1, total_iters=4),
    )
