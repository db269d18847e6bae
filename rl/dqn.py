"""DQN: Mnih et al. 2015, "Human-level control through deep reinforcement learning" (https://doi.org/10.1038/nature14236).

Observations `(batch, ...)` -> the value of each action, `(batch, actions)`: the rewards that are still to come, a step
later counting gamma times as much, if the best actions follow it.

Keywords bring what came later: double (van Hasselt et al. 2016, https://arxiv.org/abs/1509.06461), dueling (Wang et al.
2016, https://arxiv.org/abs/1511.06581), prioritized replay, returns of n steps, Polyak averaging of the target network
(Lillicrap et al. 2016, https://arxiv.org/abs/1509.02971), an average of the weights as the greedy policy (Polyak and
Juditsky 1992), layer normalisation. Beyond the article's sketch: it names a target and an environment of the old `gym`,
but has no replay, no exploration and no target network; here they are.

Shapes: N environments played side by side, G gradient steps in a training step, B transitions in a minibatch.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.vector import VectorEnv
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from lit_models.module import LitModule
from lit_models.training.plots import tensorboard_writers
from rl import environments
from rl.network import Activation, QNetwork
from rl.playing import Player, film, play_episode, play_episodes
from rl.replay import ReplayBuffer, ReplayDataset, Transitions
from rl.state import capture, restore

COUNTED = ("env_steps", "gradient_steps", "played", "evaluated")  # over the whole run


class DQN(LitModule):
    """Deep Q-learning in any environment of gymnasium with discrete actions and a box of numbers to observe.

    It brings its own data: `Trainer(max_epochs=50).fit(DQN("CartPole-v1"))`. Each training step plays `rollout_steps`
    steps of every environment, then takes `gradient_steps` steps of the optimizer, since one step of a Trainer costs
    more than one of so small a network. Curves are drawn over the environment steps of all processes, among them those
    that only reset an environment.

    Args:
        env_id: Gymnasium's name of the environment. Its numbers are taken as they are; `uint8` of two dimensions or
            more is an image, and goes through DQN's convolutions.
        env_options: Keywords of the environment's own, such as `max_episode_steps`.
        num_envs: How many environments are played side by side, N.
        vectorization: In training, one after the other (`sync`) or each in a process of its own (`async`), where the
            environment has no vectorised form of its own, which is faster.
        grayscale: Whether to take the colour out of images.
        frame_stack: How many of the last images make an observation.
        hidden_sizes: Widths of the fully connected layers.
        activation: What follows each of them.
        layer_norm: Whether each is normalised first, without weights of its own.
        dueling: Whether values are a state's value plus the advantages of the actions.
        double: Whether the network chooses the next action, which the target network values.
        gamma: What a reward counts a step later, in 0..1.
        n_steps: How many rewards are summed before the target network's value stands for the rest.
        loss: Of the errors of values: squared, or Huber's, linear from 1 on.
        max_grad_norm: The norm to which gradients are clipped; null leaves them.
        buffer_size: How many transitions are kept to learn from.
        learning_starts: Environment steps before training starts.
        prioritized: Whether transitions with large errors are drawn more often.
        rollout_steps: Steps of every environment in a training step.
        gradient_steps: Steps of the optimizer in a training step, G; their targets are from before the first.
        batch_size: Transitions in each of them, B.
        tau: How far the target network moves towards the network when it moves, in 0..1; 1 copies.
        target_interval: Training steps from one of its moves to the next.
        weight_average: Decay, a step of the optimizer, of the average of the weights that is the greedy policy; with 0
            it is the network itself.
        epsilon_end: The share of random actions after `epsilon_steps`.
        epsilon_steps: Environment steps in which the share falls from 1, linearly.
        steps_per_epoch: Environment steps in an epoch, in whole training steps; at its end the greedy policy is
            evaluated.
        eval_episodes: How many episodes it then plays, in environments of its own; so many in every process.
        eval_video: Whether one of them is filmed for TensorBoard; needs the extra `video`.
        test_episodes: How many episodes `test` and `predict` play.
        save_replay: Whether checkpoints hold the replay buffer; if not, a resumed run first fills a new one.
        optimizer: Called with the parameters, returns the optimizer.
        lr_scheduler: Called with the optimizer, returns the schedule. `OneCycleLR` steps after every training step, all
            others after every epoch.

    Raises:
        ValueError: There is no such environment, its actions or observations are of another kind, or a number is out
            of its range.
    """

    task = "reinforcement learning"
    output_name = "values"
    resume_may_change = frozenset({"save_replay"})
    lr_monitor = False  # its rate is logged over environment steps

    def __init__(
        self,
        env_id: str = "CartPole-v1",
        env_options: dict[str, Any] | None = None,
        num_envs: int = 8,
        vectorization: Literal["sync", "async"] = "sync",
        grayscale: bool = False,
        frame_stack: int = 1,
        hidden_sizes: Sequence[int] = (128, 128),
        activation: Activation = "relu",
        layer_norm: bool = False,
        dueling: bool = False,
        double: bool = False,
        gamma: float = 0.99,
        n_steps: int = 1,
        loss: Literal["mse", "huber"] = "huber",
        max_grad_norm: float | None = None,
        buffer_size: int = 10_000,
        learning_starts: int = 1_000,
        prioritized: bool = False,
        rollout_steps: int = 1,
        gradient_steps: int = 4,
        batch_size: int = 64,
        tau: float = 1.0,
        target_interval: int = 50,
        weight_average: float = 0.0,
        epsilon_end: float = 0.05,
        epsilon_steps: int = 10_000,
        steps_per_epoch: int = 2_000,
        eval_episodes: int = 20,
        eval_video: bool = False,
        test_episodes: int = 100,
        save_replay: bool = True,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self._refuse_numbers_out_of_range()
        self.automatic_optimization = False
        self.options = {"env_options": env_options, "grayscale": grayscale, "frame_stack": frame_stack}
        with contextlib.closing(environments.make_environment(env_id, **self.options)) as environment:
            environments.refuse_other_spaces(env_id, environment)
            space, actions = environment.observation_space, environment.action_space
        self.num_actions, self.first_action = int(actions.n), int(actions.start)
        self.example_input_array = torch.from_numpy(np.zeros((1, *space.shape), dtype=space.dtype))
        image = space.dtype == np.uint8 and len(space.shape) > 1
        numbers = (space.shape, image, self.num_actions, hidden_sizes, activation, layer_norm, dueling)
        self.network = QNetwork(*numbers)
        self.target = QNetwork(*numbers).requires_grad_(False)
        self.average = QNetwork(*numbers).requires_grad_(False) if weight_average else None
        for copy in (self.target, self.average):
            if copy is not None:
                copy.load_state_dict(self.network.state_dict())
        self.move_target, self.move_average = get_ema_multi_avg_fn(1 - tau), get_ema_multi_avg_fn(weight_average)
        self.env_steps, self.gradient_steps = 0, 0
        self.played: list[tuple[int, float]] = []
        self.evaluated: list[tuple[int, float]] = []
        self.evaluators: VectorEnv | None = None
        self.video_folder: str | None = None

    def forward(self, observation: Tensor) -> Tensor:
        """The greedy policy's values `(batch, actions)` of observations `(batch, ...)`."""
        return (self.network if self.average is None else self.average)(observation)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compiles the networks, which are what training calls; see `torch.compile`."""
        for network in (self.network, self.target, self.average):
            if network is not None:
                network.compile(*args, **options)

    @torch.no_grad()
    def act(self, observation: np.ndarray | Tensor) -> np.ndarray:
        """The greedy policy's actions, `(batch,)`, for observations `(batch, ...)`; one, `()`, for one."""
        seen = observation if isinstance(observation, Tensor) else torch.as_tensor(np.asarray(observation))
        seen = seen.to(self.device)
        one = seen.dim() < self.example_input_array.dim()
        action = self(seen[None] if one else seen).argmax(dim=1).cpu().numpy() + self.first_action
        return action[0] if one else action

    def predict(
        self,
        observation: np.ndarray,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Actions as stable-baselines3's tools ask for them, `evaluate_policy(agent, env)` for one.

        Args:
            observation: `(batch, ...)`, or one.
            state: Of a recurrent policy, which this is not; it is returned.
            episode_start: The same.
            deterministic: Whether the policy is greedy; otherwise a share of `epsilon` of the actions is random.
        """
        action = np.asarray(self.act(observation))
        if not deterministic:
            explore = np.random.random(action.shape) < self.epsilon
            drawn = self.first_action + np.random.randint(self.num_actions, size=action.shape)
            action = np.where(explore, drawn, action)
        return action, state

    @property
    def epsilon(self) -> float:
        """The share of random actions, after the environment steps so far."""
        fallen = min(self.env_steps / max(self.hparams.epsilon_steps, 1), 1.0)
        return 1 + fallen * (self.hparams.epsilon_end - 1)

    def setup(self, stage: str) -> None:
        """Makes the training environments and the buffer, for every process its own."""
        if self.trainer.datamodule is not None:
            raise ValueError(
                f"DQN plays its own environments: leave out --data {type(self.trainer.datamodule).__name__}"
            )
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise ValueError(
                "DQN plays outside of its training step, which fsdp's shards of the weights cannot: set "
                "trainer.strategy to ddp"
            )
        super().setup(stage)
        if stage != "fit":
            return
        own = self.hparams
        seed = self._seed("train")
        self.generator = np.random.default_rng(seed)
        shape, dtype = self.example_input_array.shape[1:], self.example_input_array.dtype
        self.buffer = ReplayBuffer(
            own.buffer_size,
            shape,
            dtype,
            num_envs=own.num_envs,
            n_steps=own.n_steps,
            gamma=own.gamma,
            prioritized=own.prioritized,
            seed=seed,
        )
        self.player = Player(self._make_environments(own.num_envs, own.vectorization), seed)
        self.warm_up, self.filled = own.learning_starts, False
        self.sums = {"updates": 0.0, "loss": 0.0, "value": 0.0}

    def train_dataloader(self) -> DataLoader:
        """Stacks of G minibatches, each after a slice of playing."""
        own = self.hparams
        slice_steps = own.num_envs * own.rollout_steps * self.trainer.world_size
        batches = max(1, own.steps_per_epoch // slice_steps)
        dataset = ReplayDataset(self.buffer, self.play, batches, (own.gradient_steps, own.batch_size))
        return DataLoader(dataset, batch_size=None, generator=torch.Generator())

    @torch.no_grad()
    def play(self) -> None:
        """Plays a slice of the training environments with the network as it is; at first, until learning starts."""
        for _ in range(self.hparams.rollout_steps):
            self._play_step()
        if not self.filled:
            # Returns of n steps take n steps to complete. All processes play as many, or their counts would differ.
            ready = self.trainer.strategy.reduce_boolean_decision
            while self.warm_up > 0 or not ready(self.buffer.size > 0):
                self._play_step()
            self.filled = True

    def _play_step(self) -> None:
        count, observation = self.hparams.num_envs, self.player.observation
        greedy = self.network(observation.to(self.device)).argmax(dim=1).cpu().numpy()
        explore = self.generator.random(count) < self.epsilon
        action = np.where(explore, self.generator.integers(self.num_actions, size=count), greedy)
        seen = self.player.step(action + self.first_action, self.env_steps)
        self.buffer.add(observation, torch.from_numpy(action), *seen)
        steps = count * self.trainer.world_size
        self.env_steps, self.warm_up = self.env_steps + steps, self.warm_up - steps

    @torch.no_grad()
    def td_target(self, batch: Transitions) -> Tensor:
        """What the values of the actions in a stack of minibatches should be, `(G, B)`."""
        next_observation = batch.next_observation.flatten(0, 1)
        next_values = self.target(next_observation)  # (G * B, actions)
        chooser = self.network(next_observation) if self.hparams.double else next_values
        next_value = next_values.gather(1, chooser.argmax(dim=1, keepdim=True)).view_as(batch.reward)
        return batch.reward + batch.discount * torch.where(batch.terminated, 0.0, next_value)

    def training_step(self, batch: Transitions, batch_idx: int) -> None:
        """Takes G steps of the optimizer, one for each minibatch `(B, ...)` of the stack `(G, B, ...)`."""
        optimizer = self.optimizers()
        loss_function = {"mse": F.mse_loss, "huber": F.smooth_l1_loss}[self.hparams.loss]
        parameters, averaged = list(self.network.parameters()), list(self.average.parameters() if self.average else ())
        targets = self.td_target(batch)
        losses, values = [], []
        for observation, action, weight, target in zip(
            batch.observation, batch.action, batch.weight, targets, strict=True
        ):
            value = self.network(observation).gather(1, action[:, None]).squeeze(1).to(target.dtype)  # (B,)
            loss = (weight * loss_function(value, target, reduction="none")).mean()
            for parameter in parameters:  # zero_grad costs ten times as much
                parameter.grad = None
            self.manual_backward(loss)
            optimizer.step()
            if averaged:
                self.move_average(averaged, parameters, None)
            losses.append(loss.detach())
            values.append(value.detach())
        values = torch.stack(values)  # (G, B)
        self.buffer.update(batch.index, targets - values)
        self.gradient_steps += len(losses)
        if self.gradient_steps // len(losses) % self.hparams.target_interval == 0:
            self.move_target(list(self.target.parameters()), parameters, None)
        self._step_schedule("step")
        self.sums["updates"] += len(losses)
        self.sums["loss"] += torch.stack(losses).sum()  # tensors from now on, so that nothing waits for the device
        self.sums["value"] += values.mean(dim=1).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradients."""
        if self.hparams.max_grad_norm is None:
            return
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ValueError("a fused optimizer cannot clip gradients of 16-mixed: set model.optimizer.fused to false")
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.hparams.max_grad_norm)

    def _refuse_numbers_out_of_range(self) -> None:
        own = self.hparams
        counts = ["num_envs", "frame_stack", "n_steps", "learning_starts", "rollout_steps", "gradient_steps"]
        counts += ["batch_size", "target_interval", "steps_per_epoch", "eval_episodes", "test_episodes"]
        for name in counts:
            if own[name] < 1:
                raise ValueError(f"{name} is {own[name]}: it must be at least 1")
        if min(own.hidden_sizes, default=1) < 1:
            raise ValueError(f"hidden_sizes is {list(own.hidden_sizes)}: each must be at least 1")
        for name in ("gamma", "epsilon_end"):
            if not 0 <= own[name] <= 1:
                raise ValueError(f"{name} is {own[name]}: it must be from 0 to 1")
        if not 0 < own.tau <= 1:
            raise ValueError(f"tau is {own.tau}: it must be above 0 and at most 1")
        if not 0 <= own.weight_average < 1:
            raise ValueError(f"weight_average is {own.weight_average}: it must be at least 0 and below 1")
        if own.epsilon_steps < 0:
            raise ValueError(f"epsilon_steps is {own.epsilon_steps}: it must be at least 0")
        if own.max_grad_norm is not None and not own.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm is {own.max_grad_norm}: it must be above 0, or null for no clipping")
        for name in ("batch_size", "learning_starts"):
            if own.buffer_size < own[name]:
                raise ValueError(
                    f"buffer_size is {own.buffer_size}, but {name} is {own[name]}: the buffer must hold as many"
                )

    def _step_schedule(self, interval: str) -> None:
        if self.trainer.lr_scheduler_configs[0].interval == interval:
            self.lr_schedulers().step()

    def on_train_epoch_end(self) -> None:
        """Logs what the epoch was like, over all processes."""
        sums = self.sums | self.player.finished
        own = torch.tensor([float(value) for value in sums.values()], device=self.device)
        total = self.trainer.strategy.reduce(own, reduce_op="sum")
        sums = dict(zip(sums, total.tolist(), strict=True))
        metrics = {
            "train/loss": sums["loss"] / sums["updates"],
            "train/q_mean": sums["value"] / sums["updates"],
            "train/epsilon": self.epsilon,
            "train/lr": self.optimizers().param_groups[0]["lr"],
        }
        if sums["episodes"]:
            metrics["episode/return"] = sums["return"] / sums["episodes"]
            metrics["episode/length"] = sums["length"] / sums["episodes"]
            self.played.append((self.env_steps, metrics["episode/return"]))
        self._log(metrics)
        self.sums, self.player.finished = dict.fromkeys(self.sums, 0.0), dict.fromkeys(self.player.finished, 0.0)
        self._step_schedule("epoch")

    def on_train_end(self) -> None:
        """Draws returns over environment steps."""
        from lit_models.training import figures  # matplotlib takes half a second to import

        for board in tensorboard_writers(self.trainer):
            board.add_figure("returns", figures.plot_returns(self.played, self.evaluated), self.env_steps)

    def val_dataloader(self) -> DataLoader:
        """One batch: an evaluation."""
        return DataLoader([0], generator=torch.Generator())

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Plays greedy episodes, and logs their mean return and length."""
        returns, lengths = self._evaluate(self.hparams.eval_episodes, "eval")
        self._log({"eval/return": returns.mean(), "eval/length": lengths.mean()})
        if not self.trainer.sanity_checking:
            mean = torch.tensor(returns.mean(), dtype=torch.float32, device=self.device)
            self.evaluated.append((self.env_steps, self.trainer.strategy.reduce(mean, reduce_op="mean").item()))
            if self.hparams.eval_video:
                self._film()

    def test_dataloader(self) -> DataLoader:
        """One batch: all episodes."""
        return DataLoader([0], generator=torch.Generator())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Plays greedy episodes; logs the mean, standard deviation, least and greatest of the returns."""
        returns, lengths = self._evaluate(self.hparams.test_episodes, "test")
        self._log({"test/return": returns.mean(), "test/return_std": returns.std(), "test/length": lengths.mean()})
        self.log("test/return_min", returns.min(), reduce_fx="min", sync_dist=True)
        self.log("test/return_max", returns.max(), reduce_fx="max", sync_dist=True)

    def predict_dataloader(self) -> DataLoader:
        """The numbers of the episodes."""
        return DataLoader(range(self.hparams.test_episodes), generator=torch.Generator())

    def on_predict_start(self) -> None:
        """Makes the environment, filmed where `video_folder` says."""
        render_mode = None if self.video_folder is None else "rgb_array"
        try:
            self.environment = environments.make_environment(
                self.hparams.env_id, **self.options, render_mode=render_mode, video_folder=self.video_folder
            )
        except OSError as error:
            raise OSError(
                f"cannot write films to {self.video_folder} ({error.strerror}): give another folder with --video"
            ) from error

    def predict_step(self, batch: Tensor, batch_idx: int) -> list[dict[str, Any]]:
        """Plays a greedy episode: its number, seed, return, length, and whether it terminated."""
        episode = batch.item()
        seed = self._seed("test") + episode
        total, length, terminated = play_episode(self.environment, self.act, seed)
        return [{"episode": episode, "seed": seed, "return": total, "length": length, "terminated": terminated}]

    def on_predict_end(self) -> None:
        """Closes the environment, and with it the last film."""
        self.environment.close()

    def configure_optimizers(self) -> dict[str, Any]:
        """The injected optimizer and schedule.

        Raises:
            ValueError: The optimizer is LBFGS.
        """
        configured = super().configure_optimizers()
        if isinstance(configured["optimizer"], torch.optim.LBFGS):
            raise ValueError(
                "LBFGS evaluates the loss several times a step, which DQN cannot: choose another optimizer"
            )
        return configured

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what it takes to go on as if training had not stopped: counters, and of every process the rest."""
        super().on_save_checkpoint(checkpoint)
        for name in COUNTED:
            checkpoint[name] = getattr(self, name)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the counters; the rest when training starts."""
        asked, held = self.hparams.env_id, checkpoint["hyper_parameters"]["env_id"]
        if asked != held:
            raise ValueError(f"the checkpoint's agent plays {held}, not {asked}")
        for name in COUNTED:
            setattr(self, name, checkpoint[name])
        if self._trainer is None or not self.trainer.training:  # only the weights are asked for
            return
        for name in ("num_envs", "buffer_size", "n_steps", "gamma", "prioritized"):
            if self.hparams[name] != checkpoint["hyper_parameters"][name]:
                raise ValueError(
                    f"the checkpoint was written with {name} {checkpoint['hyper_parameters'][name]}, not "
                    f"{self.hparams[name]}: its replay does not fit"
                )

    def on_train_start(self) -> None:
        """Goes on where the checkpoint was written, if there is one."""
        if self.hparams.save_replay:
            size = sum(value.nbytes for value in vars(self.buffer).values() if isinstance(value, Tensor))
            rank_zero_info(f"A checkpoint takes up to {size / 1e6:,.1f} MB for the replay: model.save_replay")

    def teardown(self, stage: str) -> None:
        """Closes the environments."""
        if stage == "fit":
            self.player.environments.close()
        if self.evaluators is not None:
            self.evaluators.close()
            self.evaluators = None

    def training_state(self) -> dict[str, Any]:
        return {
            "replay": self.buffer.state_dict() if self.hparams.save_replay else None,
            "player": self.player.state_dict(),
            "sums": {name: float(value) for name, value in self.sums.items()},
            "generator": capture(self.generator),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        if state["replay"] is not None:
            self.buffer.load_state_dict(state["replay"])
            self.warm_up, self.filled = 0, True
        else:
            rank_zero_info("The checkpoint holds no replay: the buffer is filled anew first")
        if not self.player.load_state_dict(state["player"]):
            rank_zero_info(f"The state of {self.hparams.env_id} cannot be saved: its environments start new episodes")
            self.buffer.pending.zero_()
            seed = (self._seed("train") + self.env_steps) % 2**32  # not those that the run began with
            self.player = Player(self.player.environments, seed)
        self.sums = state["sums"]
        self.generator = restore(self.generator, state["generator"])

    def _evaluate(self, episodes: int, purpose: str) -> tuple[Tensor, Tensor]:
        if self.evaluators is None:
            own = self.hparams
            vectorised = environments.is_vectorised(own.env_id, own.grayscale, own.frame_stack)
            # One environment an episode is fastest where they are arrays; else one would wait for the longest.
            count = min(episodes, 100 if vectorised else own.num_envs)
            self.evaluators = self._make_environments(count, "sync")
        return play_episodes(self.evaluators, self.act, episodes, self._seed(purpose))

    def _make_environments(self, count: int, vectorization: str) -> VectorEnv:
        return environments.make_environments(self.hparams.env_id, count, vectorization, **self.options)

    def _film(self) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        frames: list[np.ndarray] = []
        maker = environments.make_environment(self.hparams.env_id, **self.options, render_mode="rgb_array")
        with contextlib.closing(maker) as environment:
            play_episode(environment, self.act, self._seed("eval"), frames)
            content = film(frames, environment.metadata.get("render_fps", 30))
        height, width, _ = frames[0].shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        for board in tensorboard_writers(self.trainer):
            summary = Summary(value=[Summary.Value(tag="eval/episode", image=image)])
            board._get_file_writer().add_summary(summary, self.env_steps)

    def _log(self, metrics: dict[str, Any]) -> None:
        device = self.device if self.trainer.world_size > 1 else None  # where processes exchange it
        steps = torch.tensor(self.env_steps, dtype=torch.float64, device=device)
        # Lightning takes "step" for where a curve's points are.
        self.log_dict({"env_steps": steps, "step": steps}, sync_dist=True)
        self.log_dict(metrics, prog_bar=True, sync_dist=True)

    def _seed(self, purpose: str) -> int:
        """The same for the same seed of a run; another for every process and purpose."""
        number = ("train", "eval", "test").index(purpose)
        sequence = np.random.SeedSequence([torch.initial_seed() % 2**64, number, self.global_rank])
        return int(sequence.generate_state(1)[0])
