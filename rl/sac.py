"""SAC: Haarnoja et al. 2018, "Soft actor-critic algorithms and applications" (https://arxiv.org/abs/1812.05905).

Observations `(batch, ...)` -> actions `(batch, ...)`: those that a stochastic policy pi takes on average. It maximizes
the return plus alpha times its own entropy, where the temperature alpha is learned, too. An action is the tanh of a
Gaussian one, u (appendix C of Haarnoja et al. 2018, https://arxiv.org/abs/1801.01290).

Legend: N - environments, G - gradient steps per training step, B - transitions per minibatch, K - critics, A - numbers
of an action.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

from lit_models.common.arguments import PositiveFloat, PositiveInt, Range, UnitInterval, check_arguments
from lit_models.training.means import EpochMeans
from lit_models.training.schedule import LRSchedulerCallable
from rl.actor_critic import ActionScale, Actor, Critics, check_off_policy
from rl.agent import Agent
from rl.buffers import ReplayBuffer, Transitions
from rl.networks import Activation

LOG_STD = (-20.0, 2.0)  # range of the logarithm of a standard deviation of u


class SAC(Agent):
    """Soft actor-critic in any gymnasium environment with continuous actions.

    It brings its own data: `Trainer(max_epochs=10).fit(SAC("Pendulum-v1"))`. There are two critics, K, of which the
    lower value counts.

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
        temperature: Temperature alpha at the start, in units of reward.
        learn_temperature: Whether it is learned, so that the entropy comes to its target.
        target_entropy: Entropy of actions in -1..1, in nats; -A, if not given.
        gamma: Discount factor.
        max_grad_norm: Maximum norm of the gradient of all networks together; no clipping, if not given.
        buffer_size: Capacity of the replay buffer, in transitions.
        learning_starts: Environment steps before training, with random actions.
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
        optimizer: Factory: parameters -> optimizer, of the policy, the critics and the temperature.
        lr_scheduler: Factory: optimizer -> schedule, see `lit_models.training.schedule`.

    Raises:
        ValueError: There is no such environment, its spaces are of another kind, or an argument is out of range.
    """

    output_name = "action"
    value_label = "lower soft Q(s, a) of the greedy action"
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
        temperature: PositiveFloat = 1.0,
        learn_temperature: bool = True,
        target_entropy: float | None = None,
        gamma: UnitInterval = 0.99,
        max_grad_norm: PositiveFloat | None = None,
        buffer_size: PositiveInt = 100_000,
        learning_starts: PositiveInt = 1_000,
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
        check_arguments(SAC, locals())
        check_off_policy(buffer_size, batch_size, learning_starts)
        if target_entropy is not None and not learn_temperature:
            raise ValueError("target_entropy is of a temperature that is learned: set learn_temperature to true")
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.inspect_env()
        self.scale = ActionScale(env_id, self.action_space)
        self.action_size = self.scale.low.numel()  # A
        space, sizes = self.observation_space, (hidden_sizes, activation)
        self.actor = Actor(space, 2 * self.action_size, *sizes)
        self.critics = Critics(space, self.action_size, 2, *sizes)
        self.target_critics = deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(temperature)), requires_grad=learn_temperature)
        self.target_entropy = -float(self.action_size) if target_entropy is None else target_entropy
        self.means = EpochMeans(train=("policy_loss", "value_loss", "q_mean", "entropy", "temperature"))

    def forward(self, observation: Tensor) -> Tensor:
        """Actions `(batch, ...)` of the policy without chance, within their bounds, for observations `(batch, ...)`."""
        return self.scale(self.actor(observation)[:, : self.action_size].tanh())

    @override
    def greedy(self, observation: Tensor) -> Tensor:
        return self(observation).float()

    @override
    def value(self, observation: Tensor) -> Tensor:
        return self.critics(observation, self.actor(observation)[:, : self.action_size].tanh()).amin(dim=0)

    def sample(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Random actions `(batch, A)` in -1..1 for observations `(batch, ...)`; their log probabilities `(batch,)`."""
        mean, log_std = self.actor(observation).chunk(2, dim=1)
        log_std, epsilon = log_std.clamp(*LOG_STD), torch.randn_like(mean)
        u = mean + log_std.exp() * epsilon
        log_mu = -0.5 * epsilon**2 - log_std - 0.5 * math.log(2 * math.pi)  # density of u
        # log(1 - tanh(u)^2), which rounds to log(0) where u is large
        log_slope = 2 * (math.log(2) - u - F.softplus(-2 * u))
        return u.tanh(), (log_mu - log_slope).sum(dim=1)

    @override
    def random_action(self, observation: Tensor) -> Tensor:
        return self.scale(self.sample(observation)[0]).float()

    @override
    def behave(self, observation: Tensor) -> tuple[np.ndarray, Tensor]:
        if self.env_steps < self.hparams.learning_starts:
            action = torch.from_numpy(self.rng.uniform(-1, 1, (len(observation), self.action_size)))
        else:
            action, _ = self.sample(observation)
        action = action.float()  # (N, A)
        return self.scale(action.to(observation.device)).float().cpu().numpy(), action.cpu()

    @override
    def make_buffer(self, seed: int) -> ReplayBuffer:
        return self.replay(seed, action_shape=(self.action_size,), action_dtype=torch.float32)

    @torch.no_grad()
    def td_target(self, batch: Transitions) -> Tensor:
        """TD targets `(G, B)` of a stack of minibatches: the reward and (3), the soft value of the next state."""
        next_observation = batch.next_observation.flatten(0, 1)
        next_action, log_pi = self.sample(next_observation)  # (G * B, A), (G * B,)
        next_value = self.target_critics(next_observation, next_action).amin(dim=0) - self.log_alpha.exp() * log_pi
        return batch.reward + batch.discount * torch.where(batch.terminated, 0.0, next_value.view_as(batch.reward))

    def training_step(self, batch: Transitions, batch_idx: int) -> Tensor:
        """Takes an optimizer step on each minibatch `(B, ...)` of a stack `(G, B, ...)`; the mean of critics' losses.

        Policy, critics and temperature, of which no loss moves another, take one step of one optimizer together.
        """
        optimizer, targets = self.optimizers(), self.td_target(batch)
        parameters = [*self.actor.parameters(), *self.critics.parameters(), self.log_alpha]
        online, averaged = list(self.critics.parameters()), list(self.target_critics.parameters())
        ema_update = get_ema_multi_avg_fn(1 - self.hparams.tau)
        found: dict[int, tuple[Tensor, ...]] = {}  # of each step, from its last evaluation

        def backward(step: int, observation: Tensor, action: Tensor, target: Tensor) -> Tensor:
            value = self.critics(observation, action).to(target.dtype)  # (K, B)
            value_loss = F.mse_loss(value, target.expand_as(value), reduction="none").mean(dim=1).sum()  # (5)
            sampled, log_pi = self.sample(observation)  # (B, A), (B,)
            alpha = self.log_alpha.exp()
            self.critics.requires_grad_(False)
            sampled_value = self.critics(observation, sampled).amin(dim=0)  # (B,)
            self.critics.requires_grad_(True)
            policy_loss = (alpha.detach() * log_pi - sampled_value).mean()  # (9)
            temperature_loss = -(alpha * (log_pi.detach() + self.target_entropy)).mean()  # (18)
            for parameter in parameters:  # zero_grad takes ten times as long
                parameter.grad = None
            loss = value_loss + policy_loss + temperature_loss
            self.manual_backward(loss)
            found[step] = tuple(part.detach() for part in (value_loss, policy_loss, value.mean(), log_pi.mean(), alpha))
            return loss

        for step, minibatch in enumerate(zip(batch.observation, batch.action, targets, strict=True)):
            optimizer.step(partial(backward, step, *minibatch))  # a function, for LBFGS, which calls it several times
            self.step_schedules("step")
            ema_update(averaged, online, None)
        value_loss, policy_loss, q_mean, log_pi, alpha = (sum(part) for part in zip(*found.values(), strict=True))
        self.gradient_steps += len(targets)
        sums = {"value_loss": value_loss, "policy_loss": policy_loss, "q_mean": q_mean, "entropy": -log_pi}
        self.means.update("train", len(targets), **sums, temperature=alpha)
        return value_loss / len(targets)
