"""Reinforcement-learning agents as LightningModules."""

from rl.buffers import ReplayBuffer, ReplayDataset
from rl.dqn import DQN
from rl.ppo import PPO
from rl.rollout_buffer import RolloutBuffer, RolloutDataset

__all__ = ["DQN", "PPO", "ReplayBuffer", "ReplayDataset", "RolloutBuffer", "RolloutDataset"]
