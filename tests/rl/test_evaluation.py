"""Evaluation: every episode counts once."""

from functools import partial

import numpy as np

from rl.envs import make_vector_env
from rl.evaluation import play_episodes


def test_episodes_are_spread_evenly():
    environments = make_vector_env("CartPole-v1", 8)

    # Pushing one way ends within 11 steps, balancing a little later: the first 16 to end would be the shortest.
    def policy(seen):
        return np.where(np.arange(8) < 4, 0, (seen[:, 2] > 0).astype(int))

    returns, lengths = play_episodes(environments, policy, 18, seed=0)
    assert (returns == lengths).all()
    assert len(returns) == 18
    assert (returns <= 11).sum() == 4 * 2 + 2  # the first two environments play one more


def test_evaluation_is_seeded():
    environments = make_vector_env("CartPole-v1", 3)
    play = partial(play_episodes, environments, lambda seen: (seen[:, 2] > 0).astype(int), 10)
    assert np.array_equal(play(seed=1)[0], play(seed=1)[0])
    assert not np.array_equal(play(seed=1)[0], play(seed=2)[0])
