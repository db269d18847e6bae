"""DQN: Mnih et al. 2015, "Human-level control through deep reinforcement learning" (https://doi.org/10.1038/nature14236).

Observations `(batch, ...)` -> Q-values `(batch, actions)`: the expected discounted return of each action.

Later extensions are keywords: double (van Hasselt et al. 2016, https://arxiv.org/abs/1509.06461), dueling (Wang et al.
2016, https://arxiv.org/abs/1511.06581), prioritized replay, n-step returns, Polyak averaging of the target network
(Lillicrap et al. 2016, https://arxiv.org/abs/1509.02971), a moving average of the weights as the greedy policy, layer
normalization. The article's sketch has no replay, exploration or target network; they are added here.

Legend: N - environments, G - gradient steps per training step, B - transitions per minibatch.
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

from lit_models.common.arguments import NonNegativeInt, PositiveFloat, PositiveInt, Range, UnitInterval, check_arguments
from lit_models.training.means import EpochMeans
from lit_models.training.schedule import LRSchedulerCallable
from rl.agent import Agent
from rl.buffers import ReplayBuffer, Transitions
from rl.networks import Activation, QNetwork, is_image


class DQN(Agent):
    """Deep Q-learning in any gymnasium environment with discrete actions.

    It brings its own data: `Trainer(max_epochs=50).fit(DQN("CartPole-v1"))`.

    Args:
        env_id: Gymnasium id. Observations of `uint8` with two dimensions or more are images; others are flattened.
        env_options: Keywords of the environment, such as `max_episode_steps`.
        wrappers: Wrappers, innermost first: class paths, gymnasium's by name, or with `class_path` and `init_args`.
        num_envs: Number of training environments, N.
        vectorization: Training environments without a vectorized form run in one process (`sync`) or many (`async`).
        grayscale: Convert images to grayscale.
        frame_stack: Number of latest observations that are stacked into one.
        hidden_sizes: Widths of the hidden layers.
        activation: Activation function.
        layer_norm: Layer normalization before each activation, without learned scale and shift.
        dueling: Dueling network: state value plus advantages.
        double: Double Q-learning: the online network chooses the next action, the target network values it.
        gamma: Discount factor.
        n_steps: Number of rewards in a return, before it bootstraps from the target network.
        loss: Squared or Huber loss of the TD errors.
        max_grad_norm: Maximum norm of the gradient; no clipping, if not given.
        buffer_size: Capacity of the replay buffer, in transitions.
        learning_starts: Environment steps before training.
        prioritized: Prioritized replay.
        priority_alpha: Prioritization exponent; 0 is uniform.
        priority_beta: Initial importance-sampling exponent, annealed linearly to 1 at the end of training.
        rollout_steps: Steps of every environment per training step.
        gradient_steps: Optimizer steps per training step, G; their targets are computed before the first.
        batch_size: Transitions per optimizer step, B.
        tau: Polyak coefficient of the target network; 1 copies the weights.
        target_update_interval: Training steps between target updates.
        ema_decay: Decay per optimizer step of the averaged weights that are the greedy policy; 0 is no averaging.
        epsilon_end: Final exploration rate.
        epsilon_steps: Environment steps over which the exploration rate falls linearly from 1.
        steps_per_epoch: Environment steps per epoch, rounded to whole training steps.
        eval_episodes: Greedy episodes per validation and process.
        eval_max_steps: Steps of a greedy episode that is taken for one without end, which is an error.
        eval_video: Show one of them in TensorBoard; needs the extra `video`.
        test_episodes: Greedy episodes of `test` and `predict`.
        save_replay: Save the replay buffer in checkpoints; a resumed run fills a new one otherwise.
        optimizer: Factory: parameters -> optimizer.
        lr_scheduler: Factory: optimizer -> schedule, see `lit_models.training.schedule`.

    Raises:
        ValueError: There is no such environment, its spaces are of another kind, or an argument is out of range.
    """

    output_name = "values"
    value_label = "largest Q(s, a)"
    action_spaces = (spaces.Discrete,)
    resume_must_match = (*Agent.resume_must_match, "buffer_size", "n_steps", "gamma", "prioritized")

    def __init__(
        self,
        env_id: str = "CartPole-v1",
        env_options: dict[str, Any] | None = None,
        wrappers: list[str | dict[str, Any]] | None = None,
        num_envs: PositiveInt = 8,
        vectorization: Literal["sync", "async"] = "sync",
        grayscale: bool = False,
        frame_stack: PositiveInt = 1,
        hidden_sizes: Sequence[PositiveInt] = (128, 128),
        activation: Activation = "relu",
        layer_norm: bool = False,
        dueling: bool = False,
        double: bool = False,
        gamma: UnitInterval = 0.99,
        n_steps: PositiveInt = 1,
        loss: Literal["mse", "huber"] = "huber",
        max_grad_norm: PositiveFloat | None = None,
        buffer_size: PositiveInt = 10_000,
        learning_starts: PositiveInt = 1_000,
        prioritized: bool = False,
        priority_alpha: UnitInterval = 0.6,
        priority_beta: UnitInterval = 0.4,
        rollout_steps: PositiveInt = 1,
        gradient_steps: PositiveInt = 4,
        batch_size: PositiveInt = 64,
        tau: Annotated[float, Range(above=0, high=1)] = 1.0,
        target_update_interval: PositiveInt = 50,
        ema_decay: Annotated[float, Range(0, below=1)] = 0.0,
        epsilon_end: UnitInterval = 0.05,
        epsilon_steps: NonNegativeInt = 10_000,
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
        check_arguments(DQN, locals())
        if buffer_size < (least := max(batch_size, learning_starts)):
            raise ValueError(f"buffer_size is {buffer_size}: batch_size and learning_starts need {least} or more")
        if not prioritized and (priority_alpha, priority_beta) != (0.6, 0.4):
            raise ValueError("priority_alpha and priority_beta are of prioritized replay: set prioritized to true")
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.inspect_env()
        self.num_actions, self.action_start = int(self.action_space.n), int(self.action_space.start)
        space, actions = self.observation_space, self.num_actions
        self.network = QNetwork(space.shape, is_image(space), actions, hidden_sizes, activation, layer_norm, dueling)
        self.target = deepcopy(self.network).requires_grad_(False)
        self.ema_network = deepcopy(self.target) if ema_decay else None
        self.means = EpochMeans(train=("loss", "q_mean"))

    def forward(self, observation: Tensor) -> Tensor:
        """Q-values `(batch, actions)` of the greedy policy for observations `(batch, ...)`."""
        return (self.network if self.ema_network is None else self.ema_network)(observation)

    @override
    def greedy(self, observation: Tensor) -> Tensor:
        return self(observation).argmax(dim=1) + self.action_start

    @override
    def value(self, observation: Tensor) -> Tensor:
        return self(observation).amax(dim=1)

    @override
    def explore(self, action: np.ndarray, rng: Any) -> np.ndarray:
        integers = np.random.randint if rng is np.random else rng.integers
        random = rng.random(action.shape) < self.epsilon
        return np.where(random, self.action_start + integers(self.num_actions, size=action.shape), action)

    @property
    def epsilon(self) -> float:
        """Exploration rate, the probability of a random action."""
        done = min(self.env_steps / max(self.hparams.epsilon_steps, 1), 1.0)
        return 1 + done * (self.hparams.epsilon_end - 1)

    @property
    def beta(self) -> float:
        """Importance-sampling exponent of prioritized replay; it stays as it is where training has no end."""
        done = min(self.gradient_steps / self.planned_gradient_steps, 1.0)
        return 1 + (1 - done) * (self.hparams.priority_beta - 1)

    @override
    def schedules(self) -> dict[str, float]:
        return {"epsilon": self.epsilon} | ({"beta": self.beta} if self.hparams.prioritized else {})

    @override
    def make_buffer(self, seed: int) -> ReplayBuffer:
        hp = self.hparams
        return self.replay(seed, n_steps=hp.n_steps, prioritized=hp.prioritized, alpha=hp.priority_alpha)

    @override
    def behave(self, observation: Tensor) -> tuple[np.ndarray, Tensor]:
        greedy = self.network(observation).argmax(dim=1).cpu().numpy() + self.action_start
        action = self.explore(greedy, self.rng)  # (N,)
        return action, torch.from_numpy(action - self.action_start)

    @override
    def collect(self) -> None:
        super().collect()
        self.buffer.beta = self.beta

    @torch.no_grad()
    def td_target(self, batch: Transitions) -> Tensor:
        """TD targets `(G, B)` of a stack of minibatches."""
        next_observation = batch.next_observation.flatten(0, 1)
        next_values = self.target(next_observation)  # (G * B, actions)
        chooser = self.network(next_observation) if self.hparams.double else next_values
        next_value = next_values.gather(1, chooser.argmax(dim=1, keepdim=True)).view_as(batch.reward)
        return batch.reward + batch.discount * torch.where(batch.terminated, 0.0, next_value)

    def training_step(self, batch: Transitions, batch_idx: int) -> Tensor:
        """Takes an optimizer step on each minibatch `(B, ...)` of a stack `(G, B, ...)`; the mean of their losses."""
        optimizer = self.optimizers()
        loss_function = {"mse": F.mse_loss, "huber": F.smooth_l1_loss}[self.hparams.loss]
        parameters = list(self.network.parameters())
        averaged = [] if self.ema_network is None else list(self.ema_network.parameters())
        ema_update, targets = get_ema_multi_avg_fn(self.hparams.ema_decay), self.td_target(batch)
        found: dict[int, tuple[Tensor, Tensor]] = {}  # loss and values of each step, from its last evaluation

        def backward(step: int, observation: Tensor, action: Tensor, weight: Tensor, target: Tensor) -> Tensor:
            value = self.network(observation).gather(1, action[:, None]).squeeze(1).to(target.dtype)  # (B,)
            loss = (weight * loss_function(value, target, reduction="none")).mean()
            for parameter in parameters:  # zero_grad takes ten times as long
                parameter.grad = None
            self.manual_backward(loss)
            found[step] = loss.detach(), value.detach()
            return loss

        for step, minibatch in enumerate(zip(batch.observation, batch.action, batch.weight, targets, strict=True)):
            optimizer.step(partial(backward, step, *minibatch))  # a function, for LBFGS, which calls it several times
            self.step_schedules("step")
            if averaged:
                ema_update(averaged, parameters, None)
        losses, values = map(torch.stack, zip(*found.values(), strict=True))  # (G,), (G, B)
        self.buffer.update(batch.index, targets - values)
        self.gradient_steps += len(losses)
        if self.gradient_steps // len(losses) % self.hparams.target_update_interval == 0:
            get_ema_multi_avg_fn(1 - self.hparams.tau)(list(self.target.parameters()), parameters, None)
        self.means.update("train", len(losses), loss=losses.sum(), q_mean=values.mean(dim=1).sum())
        return losses.mean()
