"""Collecting, in a world where every episode has five steps."""

import numpy as np
import worlds  # noqa: F401  registers the environments

from rl.envs import make_vector_env
from rl.rollout import Collector


def test_episode_stats_by_hand():
    collector = Collector(make_vector_env("Wages-v0", 2), seed=0)
    steps = [collector.collect(np.array([5, 6]), env_steps=0) for _ in range(11)]
    assert collector.episode_stats == {
        "episodes": 4,
        "return": 20,
        "length": 20,
    }  # the reset between them counts for none
    assert [step.truncated.all().item() for step in steps] == [number in (4, 10) for number in range(11)]
    assert [step.autoreset.all().item() for step in steps] == [number == 5 for number in range(11)]


def test_new_episodes_keep_the_stats():
    collector = Collector(make_vector_env("Wages-v0", 2), seed=0)
    for _ in range(7):
        collector.collect(np.array([5, 6]), env_steps=0)
    collector.reset(seed=1)
    assert collector.episode_stats == {"episodes": 2, "return": 10, "length": 10}
    assert collector.episode_length.tolist() == [0, 0]
