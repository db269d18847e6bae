"""PPO: Schulman et al. 2017, "Proximal policy optimization algorithms" (https://arxiv.org/abs/1707.06347).

Observations `(batch, ...)` -> logits `(batch, choices)`, or of a Box the greedy actions `(batch, ...)`.

The equations are the paper's. Advantages are generalized advantage estimates (`rl.rollout_buffer`). What made PPO work
in practice, in the words of Huang et al. 2022, "The 37 implementation details of proximal policy optimization"
(https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details), are keywords. Other than in most scripts, an
episode that was truncated is worth what its last observation is.

Legend: N - environments, T - steps of each in a rollout, B - steps per minibatch.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from typing_extensions import override

from lit_models.common.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval, check_arguments
from lit_models.training.means import EpochMeans
from lit_models.training.schedule import LRSchedulerCallable
from rl.agent import Agent
from rl.distributions import make_distribution
from rl.networks import Activation, ActorCritic, is_image
from rl.rollout_buffer import Rollout, RolloutBuffer, RolloutDataset


class PPO(Agent):
    """Proximal policy optimization in any gymnasium environment whose actions are choices or a Box.

    It brings its own data: `Trainer(max_epochs=30).fit(PPO("CartPole-v1"))`.

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
        shared: Let policy and value share all layers but the last.
        action_std: Standard deviation of the actions at the start, of a Box whose finite ranges are -1..1.
        normalize_observations: Normalize observations by their running mean and standard deviation.
        reward_scale: Factor of the rewards that the agent learns from; values near 1 are learnt best.
        gamma: Discount factor.
        gae_lambda: Decay of the errors that an advantage sums up; 0 is the TD error, 1 the return less the value.
        clip_range: Farthest that the probability of an action is moved for its advantage, epsilon.
        anneal_clip_range: Let the clip range fall linearly to 0 until the end of training.
        value_clip: Farthest that a value is moved; not clipped, if not given.
        value_coefficient: Weight of the values' squared error, c1.
        entropy_coefficient: Weight of the policy's entropy, c2, which keeps it exploring.
        normalize_advantages: Normalize the advantages of every minibatch.
        target_kl: End the epochs of a rollout once the policy has moved so far, as mean KL divergence; never, if not
            given.
        max_grad_norm: Maximum norm of the gradient; no clipping, if not given.
        rollout_steps: Steps of every environment per rollout, T. A training step is one rollout.
        epochs: Times that a rollout is learnt from.
        batch_size: Steps per minibatch and optimizer step, B.
        steps_per_epoch: Environment steps per epoch, rounded to whole rollouts.
        eval_episodes: Greedy episodes per validation and process.
        eval_max_steps: Steps of a greedy episode that is taken for one without end, which is an error.
        eval_video: Show one of them in TensorBoard; needs the extra `video`.
        test_episodes: Greedy episodes of `test` and `predict`.
        optimizer: Factory: parameters -> optimizer.
        lr_scheduler: Factory: optimizer -> schedule, see `lit_models.training.schedule`.

    Raises:
        ValueError: There is no such environment, its spaces are of another kind, or an argument is out of range.
    """

    output_name = "policy"
    value_label = "V(s)"
    action_spaces = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)

    def __init__(
        self,
        env_id: str = "CartPole-v1",
        env_options: dict[str, Any] | None = None,
        wrappers: list[str | dict[str, Any]] | None = None,
        num_envs: PositiveInt = 32,
        vectorization: Literal["sync", "async"] = "sync",
        grayscale: bool = False,
        frame_stack: PositiveInt = 1,
        hidden_sizes: Sequence[PositiveInt] = (64, 64),
        activation: Activation = "tanh",
        shared: bool = False,
        action_std: PositiveFloat = 1.0,
        normalize_observations: bool = False,
        reward_scale: PositiveFloat = 1.0,
        gamma: UnitInterval = 0.99,
        gae_lambda: UnitInterval = 0.95,
        clip_range: PositiveFloat = 0.2,
        anneal_clip_range: bool = False,
        value_clip: PositiveFloat | None = None,
        value_coefficient: NonNegativeFloat = 0.5,
        entropy_coefficient: NonNegativeFloat = 0.0,
        normalize_advantages: bool = True,
        target_kl: PositiveFloat | None = None,
        max_grad_norm: PositiveFloat | None = 0.5,
        rollout_steps: PositiveInt = 32,
        epochs: PositiveInt = 10,
        batch_size: PositiveInt = 256,
        steps_per_epoch: PositiveInt = 4_096,
        eval_episodes: PositiveInt = 20,
        eval_max_steps: PositiveInt = 100_000,
        eval_video: bool = False,
        test_episodes: PositiveInt = 100,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=3e-4, eps=1e-5),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        check_arguments(PPO, locals())
        steps = num_envs * rollout_steps
        if steps % batch_size:
            fits = next(size for size in range(min(batch_size, steps), 0, -1) if steps % size == 0)
            raise ValueError(
                f"a rollout has {steps} steps (num_envs {num_envs} times rollout_steps {rollout_steps}), which "
                f"minibatches of {batch_size} do not divide: set batch_size to {fits}"
            )
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.inspect_env()
        image, box = is_image(self.observation_space), isinstance(self.action_space, spaces.Box)
        if image and normalize_observations:
            raise ValueError(f"{env_id} has images, which are scaled to 0..1 anyway: leave normalize_observations out")
        self.distribution = make_distribution(self.action_space)
        outputs = self.distribution.num_actions if box else self.distribution.num_parameters
        form = (hidden_sizes, activation, shared, normalize_observations, action_std if box else None)
        self.network = ActorCritic(self.observation_space.shape, image, outputs, *form)
        names = ("loss", "policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "explained_variance")
        self.means = EpochMeans(train=(*names, "action_std") if box else names)

    def forward(self, observation: Tensor) -> Tensor:
        """Logits `(batch, choices)` of observations `(batch, ...)`, or of a Box the greedy actions `(batch, ...)`."""
        parameters, box = self.network.act(observation), self.network.log_std is not None
        return self.distribution.to_env(self.distribution.mode(parameters)) if box else parameters

    @override
    def greedy(self, observation: Tensor) -> Tensor:
        return self.distribution.to_env(self.distribution.mode(self.network.act(observation)))

    @override
    def value(self, observation: Tensor) -> Tensor:
        return self.network.evaluate(observation) / self.hparams.reward_scale

    @override
    def random_action(self, observation: Tensor) -> Tensor:
        return self.distribution.to_env(self.distribution.sample(self.network.act(observation), np.random))

    @property
    @override
    def steps_per_batch(self) -> int:
        hp = self.hparams
        return hp.epochs * (hp.num_envs * hp.rollout_steps // hp.batch_size)

    @property
    def epsilon(self) -> float:
        """The clip range."""
        hp = self.hparams
        if not hp.anneal_clip_range:
            return hp.clip_range
        steps = hp.num_envs * hp.rollout_steps * self.trainer.world_size
        planned = self.planned_gradient_steps / self.steps_per_batch * steps
        return hp.clip_range * (1 - min(max(self.env_steps - steps, 0) / planned, 1.0))

    @override
    def schedules(self) -> dict[str, float]:
        return {"clip_range": self.epsilon} if self.hparams.anneal_clip_range else {}

    @override
    def train_dataset(self) -> RolloutDataset:
        return RolloutDataset(self.play, self.batches_per_epoch)

    @torch.no_grad()
    def play(self) -> Rollout:
        """Plays a rollout."""
        hp, example = self.hparams, self.example_input_array[0]
        action_form = {"action_shape": (self.distribution.num_actions,), "action_dtype": self.distribution.dtype}
        buffer = RolloutBuffer(hp.rollout_steps, hp.num_envs, example.shape, example.dtype, **action_form)
        for _ in range(hp.rollout_steps):
            observation = self.collector.observation  # (N, ...)
            parameters = self.network.act(observation.to(self.device))
            action = self.distribution.sample(parameters, self.rng)
            log_prob, _ = self.distribution.evaluate(parameters, action)
            step = self.step_envs(self.distribution.to_env(action).cpu().numpy())
            buffer.add(observation, action.cpu(), log_prob.cpu(), step.reward * hp.reward_scale, *step[1:])
        value = self.network.evaluate(buffer.observation.flatten(0, 1).to(self.device)).cpu()
        return buffer.rollout(value.unflatten(0, (-1, hp.num_envs)), hp.gamma, hp.gae_lambda)

    def training_step(self, batch: Rollout, batch_idx: int) -> Tensor:
        """Takes the optimizer steps of a rollout; the mean of their losses."""
        hp, optimizer, strategy = self.hparams, self.optimizers(), self.trainer.strategy
        steps, found = len(batch.advantage), []
        minibatches = min(self.steps_per_batch // hp.epochs, steps)  # it is less a few resets
        for _ in range(hp.epochs):
            order = torch.from_numpy(self.rng.permutation(steps)).to(self.device)
            parts = (field[order].tensor_split(minibatches) for field in batch)
            for minibatch in map(Rollout._make, zip(*parts, strict=True)):
                found.append({})
                optimizer.step(partial(self.learn, minibatch, found[-1]))  # a function, for LBFGS, which repeats it
                self.step_schedules("step")
            if hp.target_kl and strategy.reduce_boolean_decision(bool(found[-1]["kl"] > hp.target_kl), all=False):
                break
        if hp.normalize_observations:
            self.network.normalization.update(batch.observation, strategy)
        self.gradient_steps += len(found)
        sums = {name: torch.stack([one[name] for one in found]).sum() for name in found[0]}
        left = batch.advantage.var(correction=0) / (batch.advantage + batch.value).var(correction=0).clamp(min=1e-8)
        self.means.update("train", len(found), explained_variance=(1 - left) * len(found), **sums)
        return sums["loss"] / len(found)

    def learn(self, batch: Rollout, found: dict[str, Tensor]) -> Tensor:
        """The loss of a minibatch, whose gradient is taken; what is logged of it goes into `found`."""
        hp, epsilon, advantage = self.hparams, self.epsilon, batch.advantage
        if hp.normalize_advantages:
            advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        parameters, value = self.network(batch.observation)
        log_prob, entropy = self.distribution.evaluate(parameters, batch.action)
        log_ratio = log_prob - batch.log_prob
        ratio = log_ratio.exp()  # r(theta)
        clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
        policy_loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()  # eq. 7: -L^CLIP
        target = batch.value + batch.advantage
        error = (value - target).square()
        if hp.value_clip is not None:
            moved = batch.value + (value - batch.value).clamp(-hp.value_clip, hp.value_clip)
            error = torch.maximum(error, (moved - target).square())
        value_loss, entropy = error.mean(), entropy.mean()
        loss = policy_loss + hp.value_coefficient * value_loss - hp.entropy_coefficient * entropy  # eq. 9
        for parameter in self.network.parameters():  # zero_grad takes ten times as long
            parameter.grad = None
        self.manual_backward(loss)
        with torch.no_grad():
            found |= {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
            found["kl"] = (ratio - 1 - log_ratio).mean()  # http://joschu.net/blog/kl-approx.html
            found["clip_fraction"] = (ratio != clipped).float().mean()
            if self.network.log_std is not None:
                found["action_std"] = self.network.log_std.exp().mean()
            found |= {name: metric.detach() for name, metric in found.items()}
        return loss
