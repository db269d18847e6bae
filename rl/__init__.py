"""Reinforcement-learning agents as LightningModules."""

from rl.dqn import DQN
from rl.replay import ReplayBuffer, ReplayDataset

__all__ = ["DQN", "ReplayBuffer", "ReplayDataset"]
