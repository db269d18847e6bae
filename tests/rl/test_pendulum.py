"""The vectorized Pendulum, against gymnasium's."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rl.envs import make_env, make_vector_env
from rl.vector_pendulum import PendulumVectorEnv


@pytest.mark.parametrize("options", [{}, {"g": 9.81}])
def test_whole_episodes_are_those_of_gymnasium(options):
    count, draw = 100, np.random.default_rng(0)
    alone = [gymnasium.make("Pendulum-v1", **options) for _ in range(count)]
    seen = np.stack([env.reset(seed=seed)[0] for seed, env in enumerate(alone)])
    together = PendulumVectorEnv(count, **options)
    together.reset(seed=0)
    together.theta, together.speed = np.stack([env.unwrapped.state for env in alone], axis=1)
    np.testing.assert_allclose(together._see(), seen, atol=1e-6)
    for number in range(200):
        actions = draw.uniform(-2.5, 2.5, (count, 1)).astype(np.float32)  # some beyond the bounds
        expected = [np.stack(part) for part in list(zip(*map(step, alone, actions), strict=True))]
        for ours, theirs in zip(together.step(actions), expected, strict=False):
            np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)
        assert expected[3].all() == (number == 199)


def step(env, action):
    return env.step(action)[:4]


def test_episodes_restart_in_the_next_step():
    envs = make_vector_env("VectorPendulum-v1", 3, env_options={"max_episode_steps": 5})
    assert type(envs) is PendulumVectorEnv
    envs.reset(seed=1)
    torque = np.full((3, 1), 2.0, np.float32)
    for _ in range(2):
        for number in range(1, 6):
            seen, reward, terminated, truncated, _ = envs.step(torque)
            assert (reward < 0).all()
            assert not terminated.any()
            assert truncated.all() == truncated.any() == (number == 5)
        seen, reward, _, truncated, _ = envs.step(torque)
        assert not reward.any()
        assert not truncated.any()
        assert (np.abs(seen[:, 2]) <= 1).all()  # the speeds of a start
        assert len(np.unique(seen[:, 2])) == 3
        assert seen.dtype == np.float32


def test_starts_are_seeded():
    first, again, other = (PendulumVectorEnv(4).reset(seed=seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_one_of_them_is_an_environment_of_gymnasium():
    env = make_env("VectorPendulum-v1")
    assert env.spec.max_episode_steps == 200
    check_env(env.unwrapped, skip_render_check=True)
