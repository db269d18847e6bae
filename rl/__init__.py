"""Reinforcement-learning agents as LightningModules."""

from rl.buffers import ReplayBuffer, ReplayDataset
from rl.ddpg import DDPG
from rl.dqn import DQN
from rl.policy_plot import PolicyPlot
from rl.ppo import PPO
from rl.rollout_buffer import RolloutBuffer, RolloutDataset
from rl.sac import SAC

__all__ = [
    "DDPG",
    "DQN",
    "PPO",
    "SAC",
    "PolicyPlot",
    "ReplayBuffer",
    "ReplayDataset",
    "RolloutBuffer",
    "RolloutDataset",
]
