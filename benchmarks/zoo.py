"""Recipes of stable-baselines3's model zoo, https://github.com/DLR-RM/rl-baselines3-zoo, folder hyperparams."""

from typing import TYPE_CHECKING, Any

import numpy as np

from rl.evaluation import Policy

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

WIDE = {"net_arch": [400, 300]}
OFF_POLICY = {"gamma": 0.98, "buffer_size": 200_000, "learning_starts": 10_000, "learning_rate": 1e-3}
# By our config: class, environment, keywords. `num_envs`, `normalize` and `noise` are the zoo's own.
RECIPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dqn_cartpole": (
        "DQN",
        "CartPole-v1",
        {
            "learning_rate": 2.3e-3,
            "batch_size": 64,
            "buffer_size": 100_000,
            "learning_starts": 1_000,
            "gamma": 0.99,
            "target_update_interval": 10,
            "train_freq": 256,
            "gradient_steps": 128,
            "exploration_fraction": 0.16,
            "exploration_final_eps": 0.04,
            "policy_kwargs": {"net_arch": [256, 256]},
        },
    ),
    "ppo_cartpole": (
        "PPO",
        "CartPole-v1",
        {
            "num_envs": 8,
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "ent_coef": 0.0,
            "learning_rate": lambda left: left * 1e-3,
            "clip_range": lambda left: left * 0.2,
        },
    ),
    "ppo_acrobot": (
        "PPO",
        "Acrobot-v1",
        {
            "num_envs": 16,
            "normalize": True,
            "n_steps": 256,
            "gae_lambda": 0.94,
            "gamma": 0.99,
            "n_epochs": 4,
            "ent_coef": 0.0,
        },
    ),
    "ppo_lunarlander": (
        "PPO",
        "LunarLander-v3",
        {
            "num_envs": 16,
            "n_steps": 1024,
            "batch_size": 64,
            "gae_lambda": 0.98,
            "gamma": 0.999,
            "n_epochs": 4,
            "ent_coef": 0.01,
        },
    ),
    "ddpg_pendulum": ("DDPG", "Pendulum-v1", OFF_POLICY | {"noise": 0.1, "policy_kwargs": WIDE}),
    "td3_pendulum": ("TD3", "Pendulum-v1", OFF_POLICY | {"noise": 0.1, "policy_kwargs": WIDE}),
    "sac_pendulum": ("SAC", "Pendulum-v1", {"learning_rate": 1e-3}),
    # The zoo has none for it: the settings of its other MuJoCo environments, but for the random steps.
    "sac_invertedpendulum": ("SAC", "InvertedPendulum-v5", {"learning_starts": 1_000}),
    "sac_halfcheetah": ("SAC", "HalfCheetah-v5", {"learning_starts": 100}),
}
STEPS = {
    "dqn_cartpole": 50_000,
    "ppo_cartpole": 100_000,
    "ppo_acrobot": 1_000_000,
    "ppo_lunarlander": 1_000_000,
    "ddpg_pendulum": 20_000,
    "td3_pendulum": 20_000,
    "sac_pendulum": 20_000,
    "sac_invertedpendulum": 10_000,
    "sac_halfcheetah": 3_000,  # for its speed
}


def make(name: str, seed: int) -> tuple["BaseAlgorithm", Policy]:
    """An algorithm, and its greedy policy."""
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import VecNormalize

    algorithm, env_id, recipe = RECIPES[name]
    keywords = dict(recipe)
    envs = make_vec_env(env_id, keywords.pop("num_envs", 1), seed=seed)
    if keywords.pop("normalize", False):
        envs = VecNormalize(envs)
    if std := keywords.pop("noise", None):
        size = envs.action_space.shape
        keywords["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, std))
    model = getattr(stable_baselines3, algorithm)("MlpPolicy", envs, seed=seed, device="cpu", **keywords)

    def policy(observation: np.ndarray) -> np.ndarray:
        seen = envs.normalize_obs(observation) if isinstance(envs, VecNormalize) else observation
        return model.predict(seen, deterministic=True)[0]

    return model, policy


def gradient_steps(model: "BaseAlgorithm") -> int:
    """Steps of the optimizer, of a model that has learnt; PPO counts its passes over a rollout."""
    if not hasattr(model, "n_steps"):
        return model._n_updates
    return model._n_updates * -(-model.n_steps * model.n_envs // model.batch_size)
