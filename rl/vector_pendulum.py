"""Pendulum, many at once: the environment `VectorPendulum-v1`, which is gymnasium's Pendulum-v1 with a vectorized form.

Legend: N - environments, theta - angle in radians, 0 where the pendulum stands upright.
"""

from typing import Any

import numpy as np
from gymnasium.envs.classic_control.pendulum import PendulumEnv, angle_normalize
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from typing_extensions import override


class PendulumVectorEnv(VectorEnv):
    """N pendulums of gymnasium's `PendulumEnv`, stepped as arrays; they reset themselves in the next step.

    Args:
        num_envs: Number of environments, N.
        max_episode_steps: Steps after which an episode is truncated.
        g: Acceleration of gravity in m/s^2.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  as gymnasium has it

    def __init__(self, num_envs: int = 1, max_episode_steps: int = 200, g: float = 10.0) -> None:
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        single = PendulumEnv(g=g)
        self.single_observation_space, self.single_action_space = single.observation_space, single.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.g, self.m, self.l, self.dt = single.g, single.m, single.l, single.dt
        self.max_speed, self.max_torque = single.max_speed, single.max_torque
        self.theta, self.speed = np.zeros(num_envs), np.zeros(num_envs)
        self.steps, self.done = np.zeros(num_envs, dtype=np.int64), np.zeros(num_envs, dtype=bool)

    @override
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._restart(np.ones(self.num_envs, dtype=bool))
        return self._see(), {}

    @override
    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:  # actions: (N, 1)
        over = self.done  # these are only reset
        torque = np.clip(actions, -self.max_torque, self.max_torque)[:, 0]  # (N,)
        reward = -(angle_normalize(self.theta) ** 2 + 0.1 * self.speed**2 + 0.001 * torque**2)
        acceleration = 3 * self.g / (2 * self.l) * np.sin(self.theta) + 3.0 / (self.m * self.l**2) * torque
        self.speed = np.clip(self.speed + acceleration * self.dt, -self.max_speed, self.max_speed)
        self.theta = self.theta + self.speed * self.dt
        self.steps += 1
        self.done = (self.steps >= self.max_episode_steps) & ~over
        if over.any():
            reward[over] = 0.0
            self._restart(over)
        return self._see(), reward, np.zeros(self.num_envs, dtype=bool), self.done.copy(), {}

    def _restart(self, which: np.ndarray) -> None:
        self.theta[which], self.speed[which] = self.np_random.uniform((-np.pi, -1), (np.pi, 1), (which.sum(), 2)).T
        self.steps[which], self.done[which] = 0, False

    def _see(self) -> np.ndarray:
        return np.stack([np.cos(self.theta), np.sin(self.theta), self.speed], axis=1, dtype=np.float32)  # (N, 3)
