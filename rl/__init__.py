"""Reinforcement-learning agents as LightningModules."""

from rl.buffers import ReplayBuffer, ReplayDataset
from rl.dqn import DQN

__all__ = ["DQN", "ReplayBuffer", "ReplayDataset"]
