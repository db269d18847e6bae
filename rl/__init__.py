"""Reinforcement-learning agents as LightningModules."""
