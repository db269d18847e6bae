"""DDPG: Lillicrap et al. 2016, "Continuous control with deep reinforcement learning" (https://arxiv.org/abs/1509.02971).

Observations `(batch, ...)` -> actions `(batch, ...)`: those of a deterministic policy mu, which follows the gradient of
a learned Q(s, a) by the action.

The three additions of TD3 (Fujimoto et al. 2018, "Addressing function approximation error in actor-critic methods",
https://arxiv.org/abs/1802.09477) are keywords: twin critics, of which the lower value is the target (clipped double
Q-learning), a delayed policy, and a target policy that is smoothed by noise.

Legend: N - environments, G - gradient steps per training step, B - transitions per minibatch, K - critics, A - numbers
of an action.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

from lit_models.common.arguments import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Range,
    UnitInterval,
    check_arguments,
)
from lit_models.training.means import EpochMeans
from lit_models.training.schedule import LRSchedulerCallable
from rl.actor_critic import ActionScale, Actor, Critics, check_off_policy
from rl.agent import Agent
from rl.buffers import ReplayBuffer, Transitions
from rl.networks import Activation


class DDPG(Agent):
    """Deep deterministic policy gradient in any gymnasium environment with continuous actions; TD3 by its keywords.

    It brings its own data: `Trainer(max_epochs=10).fit(DDPG("Pendulum-v1"))`. TD3 is
    `DDPG(twin=True, policy_delay=2, target_noise=0.2)`.

    Args:
        env_id: Gymnasium id. Observations of `uint8` with two dimensions or more are images; others are flattened.
        env_options: Keywords of the environment, such as `max_episode_steps`.
        wrappers: Wrappers, innermost first: class paths, gymnasium's by name, or with `class_path` and `init_args`.
        num_envs: Number of training environments, N.
        vectorization: Training environments without a vectorized form run in one process (`sync`) or many (`async`).
        grayscale: Convert images to grayscale.
        frame_stack: Number of latest observations that are stacked into one.
        hidden_sizes: Widths of the hidden layers of the policy, and of each critic.
        activation: Activation function.
        twin: TD3: two critics, of which the lower value is the target.
        policy_delay: TD3: optimizer steps per step of the policy and of the target networks; divides G.
        target_noise: TD3: standard deviation of the noise of the target policy's actions; 1 is half of their range.
        noise_clip: Greatest absolute value of that noise.
        gamma: Discount factor.
        max_grad_norm: Maximum norm of the gradient of all networks together; no clipping, if not given.
        buffer_size: Capacity of the replay buffer, in transitions.
        learning_starts: Environment steps before training, with random actions.
        noise_std: Standard deviation of what is added to the exploration noise in a step; 1 is half of the range.
        noise_reversion: Share of the exploration noise that is lost in a step, theta: with 1 it is Gaussian noise,
            independent in every step, with less an Ornstein-Uhlenbeck process (the paper: 0.15, with a std of 0.2).
        rollout_steps: Steps of every environment per training step.
        gradient_steps: Optimizer steps per training step, G; their targets are computed before the first.
        batch_size: Transitions per optimizer step, B.
        tau: Polyak coefficient of the target networks.
        steps_per_epoch: Environment steps per epoch, rounded to whole training steps.
        eval_episodes: Greedy episodes per validation and process.
        eval_max_steps: Steps of a greedy episode that is taken for one without end, which is an error.
        eval_video: Show one of them in TensorBoard; needs the extra `video`.
        test_episodes: Greedy episodes of `test` and `predict`.
        save_replay: Save the replay buffer in checkpoints; a resumed run fills a new one otherwise.
        optimizer: Factory: parameters -> optimizer, of the policy and the critics.
        lr_scheduler: Factory: optimizer -> schedule, see `lit_models.training.schedule`.

    Raises:
        ValueError: There is no such environment, its spaces are of another kind, or an argument is out of range.
    """

    output_name = "action"
    value_label = "Q(s, a) of the greedy action"
    action_spaces = (spaces.Box,)
    resume_must_match = (*Agent.resume_must_match, "buffer_size", "gamma")

    def __init__(
        self,
        env_id: str = "Pendulum-v1",
        env_options: dict[str, Any] | None = None,
        wrappers: list[str | dict[str, Any]] | None = None,
        num_envs: PositiveInt = 8,
        vectorization: Literal["sync", "async"] = "sync",
        grayscale: bool = False,
        frame_stack: PositiveInt = 1,
        hidden_sizes: Sequence[PositiveInt] = (64, 64),
        activation: Activation = "relu",
        twin: bool = False,
        policy_delay: PositiveInt = 1,
        target_noise: NonNegativeFloat = 0.0,
        noise_clip: PositiveFloat = 0.5,
        gamma: UnitInterval = 0.99,
        max_grad_norm: PositiveFloat | None = None,
        buffer_size: PositiveInt = 100_000,
        learning_starts: PositiveInt = 1_000,
        noise_std: NonNegativeFloat = 0.1,
        noise_reversion: Annotated[float, Range(above=0, high=1)] = 1.0,
        rollout_steps: PositiveInt = 1,
        gradient_steps: PositiveInt = 8,
        batch_size: PositiveInt = 256,
        tau: Annotated[float, Range(above=0, high=1)] = 0.005,
        steps_per_epoch: PositiveInt = 2_000,
        eval_episodes: PositiveInt = 20,
        eval_max_steps: PositiveInt = 100_000,
        eval_video: bool = False,
        test_episodes: PositiveInt = 100,
        save_replay: bool = True,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        check_arguments(DDPG, locals())
        check_off_policy(buffer_size, batch_size, learning_starts)
        if gradient_steps % policy_delay:
            raise ValueError(f"gradient_steps is {gradient_steps}: policy_delay, {policy_delay}, must divide it")
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.inspect_env()
        self.scale = ActionScale(env_id, self.action_space)
        self.action_size = self.scale.low.numel()  # A
        space, sizes = self.observation_space, (hidden_sizes, activation)
        self.actor = Actor(space, self.action_size, *sizes)
        self.critics = Critics(space, self.action_size, 2 if twin else 1, *sizes)
        self.target_actor = deepcopy(self.actor).requires_grad_(False)
        self.target_critics = deepcopy(self.critics).requires_grad_(False)
        self.means = EpochMeans(train=("policy_loss", "value_loss", "q_mean"))

    def forward(self, observation: Tensor) -> Tensor:
        """Actions `(batch, ...)` of the policy, within their bounds, for observations `(batch, ...)`."""
        return self.scale(self.actor(observation).tanh())

    @override
    def greedy(self, observation: Tensor) -> Tensor:
        return self(observation).float()

    @override
    def value(self, observation: Tensor) -> Tensor:
        return self.critics(observation, self.actor(observation).tanh()).amin(dim=0)

    @override
    def explore(self, action: np.ndarray, rng: Any) -> np.ndarray:
        low, high = self.action_space.low, self.action_space.high
        noise = self.hparams.noise_std * (high - low) / 2 * rng.normal(size=action.shape)
        return np.clip(action + noise, low, high).astype(action.dtype)

    @override
    def behave(self, observation: Tensor) -> tuple[np.ndarray, Tensor]:
        hp, shape = self.hparams, (len(observation), self.action_size)
        if self.env_steps < hp.learning_starts:
            action = self.rng.uniform(-1, 1, shape)
        else:
            # x_t+1 = x_t - theta x_t + sigma N(0, 1), the process of the paper's section 7; a new one every episode
            left = (1 - hp.noise_reversion) * ~self.collector.done[:, None].numpy()
            self.noise = left * self.noise + hp.noise_std * self.rng.normal(size=shape)
            action = (self.actor(observation).tanh().cpu().double().numpy() + self.noise).clip(-1, 1)  # (7)
        stored = torch.from_numpy(action).float()  # (N, A)
        return self.scale(stored.to(observation.device)).float().cpu().numpy(), stored

    @override
    def make_buffer(self, seed: int) -> ReplayBuffer:
        self.noise = np.zeros((self.hparams.num_envs, self.action_size))
        return self.replay(seed, action_shape=(self.action_size,), action_dtype=torch.float32)

    @torch.no_grad()
    def td_target(self, batch: Transitions) -> Tensor:
        """TD targets `(G, B)` of a stack of minibatches: (5), with what sections 4.2 and 5.3 of TD3 add."""
        next_observation, hp = batch.next_observation.flatten(0, 1), self.hparams
        next_action = self.target_actor(next_observation).tanh()  # (G * B, A)
        if hp.target_noise:
            noise = hp.target_noise * torch.randn_like(next_action)
            next_action = (next_action + noise.clamp(-hp.noise_clip, hp.noise_clip)).clamp(-1, 1)
        next_value = self.target_critics(next_observation, next_action).amin(dim=0).view_as(batch.reward)
        return batch.reward + batch.discount * torch.where(batch.terminated, 0.0, next_value)

    def training_step(self, batch: Transitions, batch_idx: int) -> Tensor:
        """Takes an optimizer step on each minibatch `(B, ...)` of a stack `(G, B, ...)`; the mean of critics' losses.

        Policy and critics, of which neither loss moves the other, take one step of one optimizer together.
        """
        optimizer, hp, targets = self.optimizers(), self.hparams, self.td_target(batch)
        actor, critics = list(self.actor.parameters()), list(self.critics.parameters())
        averaged = [*self.target_actor.parameters(), *self.target_critics.parameters()]
        ema_update = get_ema_multi_avg_fn(1 - hp.tau)
        found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # of each step, from its last evaluation

        def backward(step: int, observation: Tensor, action: Tensor, target: Tensor) -> Tensor:
            value = self.critics(observation, action).to(target.dtype)  # (K, B)
            value_loss = F.mse_loss(value, target.expand_as(value), reduction="none").mean(dim=1).sum()  # (4)
            moves = (step + 1) % hp.policy_delay == 0  # the policy, too
            if moves:
                self.critics.requires_grad_(False)
                # The gradient of its negative is (6).
                policy_loss = -self.critics(observation, self.actor(observation).tanh())[0].mean()
                self.critics.requires_grad_(True)
            else:
                policy_loss = 0 * sum(parameter.sum() for parameter in actor)  # processes wait for every gradient
            for parameter in actor + critics:  # zero_grad takes ten times as long
                parameter.grad = None
            loss = value_loss + policy_loss
            self.manual_backward(loss)
            if not moves:
                for parameter in actor:
                    parameter.grad = None  # with one of 0 the optimizer would go on with its momentum
            found[step] = value_loss.detach(), policy_loss.detach(), value.detach()
            return loss

        for step, minibatch in enumerate(zip(batch.observation, batch.action, targets, strict=True)):
            optimizer.step(partial(backward, step, *minibatch))  # a function, for LBFGS, which calls it several times
            self.step_schedules("step")
            if (step + 1) % hp.policy_delay == 0:
                ema_update(averaged, actor + critics, None)
        value_loss, policy_loss, values = map(torch.stack, zip(*found.values(), strict=True))  # (G,), (G,), (G, K, B)
        self.gradient_steps += len(targets)
        sums = {"policy_loss": hp.policy_delay * policy_loss.sum(), "value_loss": value_loss.sum()}
        self.means.update("train", len(targets), **sums, q_mean=values.mean(dim=(1, 2)).sum())
        return value_loss.mean()

    @override
    def training_state(self) -> dict[str, Any]:
        return super().training_state() | {"noise": torch.from_numpy(self.noise)}

    @override
    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        self.noise = state["noise"].numpy()
