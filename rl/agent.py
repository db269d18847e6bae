"""The base of all agents: environments, seeds, counters, curves, evaluation, videos, exact resume."""

import contextlib
import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import override

from lit_models.common.messages import inform
from lit_models.module import LitModule
from lit_models.training.schedule import LRSchedulerCallable, monitored
from rl.buffers import ReplayBuffer, ReplayDataset
from rl.callbacks import EpisodeVideo, ReturnPlot
from rl.env_constants import find_changes, fresh_constants
from rl.env_state import get_env_state, set_env_state
from rl.envs import check_spaces, describe_env, describe_vectorization, make_env, make_vector_env, own_vector_form
from rl.evaluation import play_episode, play_episodes
from rl.policy_plot import PolicyPlot
from rl.rollout import Collector, Step

ENV_SETTINGS = ("env_id", "env_options", "wrappers", "grayscale", "frame_stack")
# Seeds of environments are below 2^31, as some want them, also when the number of one or of an episode is added.
SEEDS = 2**31 - 2**20
COUNTERS = ("env_steps", "gradient_steps", "train_returns", "eval_returns")  # over the whole run


class Agent(LitModule):
    """The base of all agents, which bring their own data.

    A subclass writes the algorithm: `__init__`, which calls `inspect_env` after `save_hyperparameters`, `forward`,
    `greedy`, `value`, `explore` or `random_action`, and `training_step`, with manual optimization, which counts its
    `gradient_steps`, adds to `means`, and calls `step_schedules`. With replay it writes `make_buffer`, and `behave`,
    with which `collect` fills the buffer; without, `steps_per_batch`, and a `train_dataset` that collects rollouts with
    `step_envs`.

    It has these keywords, which the base reads from its hyperparameters: those of `ENV_SETTINGS`, `num_envs`,
    `vectorization`, `rollout_steps`, `max_grad_norm`, `steps_per_epoch`, `eval_episodes`, `eval_max_steps`,
    `eval_video`, `test_episodes`, and with replay `gradient_steps`, `batch_size`, `learning_starts` and `save_replay`.
    Curves are drawn over the environment steps of all processes, among them those that only reset an environment.
    """

    task = "reinforcement learning"
    throughput_counters = ("env_steps", "gradient_steps")
    lr_monitor = False  # the learning rate is logged over environment steps
    resume_may_change = frozenset({"save_replay"})
    value_label: ClassVar[str] = "value"  # what `value` returns, in a picture
    action_spaces: ClassVar[tuple[type[spaces.Space], ...]]  # the kinds that it takes
    resume_must_match: ClassVar[tuple[str, ...]] = (*ENV_SETTINGS, "num_envs", "vectorization")  # hyperparameters

    def __init__(self, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None) -> None:
        super().__init__(optimizer, lr_scheduler)
        self.automatic_optimization = False
        self.env_steps, self.gradient_steps = 0, 0  # so far, of all processes
        self.train_returns: list[tuple[int, float]] = []  # (env_steps, mean of the training episodes) of every epoch
        self.eval_returns: list[tuple[int, float]] = []  # (env_steps, mean of the greedy episodes) of every validation
        self.env_constants: dict[str, Any] = {}  # at the start of training
        self.rollout_length = 0  # steps of every environment since the last training step
        self.buffer: ReplayBuffer | None = None
        self.eval_envs: VectorEnv | None = None
        self.video_folder: str | None = None  # where `predict` writes videos, if anywhere

    def inspect_env(self) -> None:
        """Makes an environment, to see whether there is one, and takes over its spaces."""
        self.env_settings = {name: self.hparams[name] for name in ENV_SETTINGS}
        with contextlib.closing(make_env(**self.env_settings)) as env:
            check_spaces(self.hparams.env_id, env, type(self).__name__, self.action_spaces)
            self.observation_space, self.action_space = env.observation_space, env.action_space
            self.description = describe_env(env)
            if env.has_wrapper_attr("update_running_mean"):
                rank_zero_warn(
                    f"{self.hparams.env_id} is wrapped in NormalizeObservation or NormalizeReward, whose statistics "
                    "every environment has of its own: evaluation and checkpoints lack those of training; scale by "
                    "fixed numbers, with RescaleObservation or a wrapper of your own"
                )
        space = self.observation_space
        self.example_input_array = torch.from_numpy(np.zeros((1, *space.shape), dtype=space.dtype))

    def greedy(self, observation: Tensor) -> Tensor:
        """The greedy actions `(batch, ...)` for observations `(batch, ...)`."""
        raise NotImplementedError

    def value(self, observation: Tensor) -> Tensor:
        """The values `(batch,)` of states, in units of the environment's rewards, for observations `(batch, ...)`."""
        raise NotImplementedError

    def explore(self, action: np.ndarray, rng: Any) -> np.ndarray:
        """Greedy actions `(batch, ...)` with exploration noise from a `np.random.Generator`, or from `np.random`."""
        raise NotImplementedError

    def random_action(self, observation: Tensor) -> Tensor:
        """Actions `(batch, ...)` as in training, for observations `(batch, ...)`."""
        return torch.from_numpy(self.explore(self.greedy(observation).cpu().numpy(), np.random))

    @property
    def steps_per_batch(self) -> int:
        """Gradient steps of a training step, at most."""
        return self.hparams.gradient_steps

    def make_buffer(self, seed: int) -> ReplayBuffer | None:
        """The replay buffer of one process; None for an on-policy agent."""
        return None

    def replay(self, seed: int, **options: Any) -> ReplayBuffer:
        """A replay buffer for the observations, with options beside those that every agent with replay has."""
        hp, example = self.hparams, self.example_input_array[0]
        options |= {name: hp[name] for name in ("num_envs", "gamma")}
        return ReplayBuffer(hp.buffer_size, example.shape, example.dtype, seed=seed, **options)

    def behave(self, observation: Tensor) -> tuple[np.ndarray, Tensor]:
        """Exploring actions for the training environments, `(N, ...)`, and the same as the replay buffer holds them."""
        raise NotImplementedError

    @torch.no_grad()
    def collect(self) -> None:
        """Adds a rollout to the replay buffer; the first one lasts until learning starts."""
        hp, end = self.hparams, self.buffer.steps + self.hparams.rollout_steps
        self.warmed_up = self.warmed_up and self.buffer.size > 0  # it may have gone back to an earlier state
        while self.buffer.steps < end or not self.warmed_up:
            observation = self.collector.observation  # (N, ...)
            action, stored = self.behave(observation.to(self.device))
            self.buffer.add(observation, stored, *self.step_envs(action))
            if not self.warmed_up and self.buffer.steps * hp.num_envs * self.trainer.world_size >= hp.learning_starts:
                # n-step returns take n steps. Processes collect equally many, or their counters would differ.
                self.warmed_up = self.trainer.strategy.reduce_boolean_decision(self.buffer.size > 0)

    def train_dataset(self) -> IterableDataset:
        """Collects with the newest weights, and yields the batches of an epoch, here from replay; it has a length."""
        shape = (self.hparams.gradient_steps, self.hparams.batch_size)
        return ReplayDataset(self.buffer, self.collect, self.batches_per_epoch, shape)

    def schedules(self) -> dict[str, float]:
        """Annealed hyperparameters by name, logged at the end of an epoch as `train/...`."""
        return {}

    @torch.no_grad()
    def act(self, observation: np.ndarray | Tensor, policy: Callable[[Tensor], Tensor] | None = None) -> np.ndarray:
        """The actions `(batch, ...)` of a policy, the greedy one, for observations `(batch, ...)`, or one for one."""
        observation, shape = torch.as_tensor(observation, device=self.device), self.observation_space.shape
        single = observation.dim() < self.example_input_array.dim()
        if observation.shape[0 if single else 1 :] != shape:
            raise ValueError(
                f"an observation has the shape {tuple(observation.shape)}, not {shape}: play in an environment of "
                "rl.envs.make_env(**agent.env_settings)"
            )
        action = (policy or self.greedy)(observation[None] if single else observation).cpu().numpy()
        return action[0] if single else action

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Actions and state, with stable-baselines3's signature, as for its `evaluate_policy(agent, env)`.

        Args:
            observation: `(batch, ...)`, or one.
            state: State of a recurrent policy; returned as it is.
            episode_start: Not used.
            deterministic: Greedy actions, without exploration.
        """
        return np.asarray(self.act(observation, self.greedy if deterministic else self.random_action)), state

    def compile(self, *args: Any, **options: Any) -> None:
        """Compiles the networks, which are what training calls; see `torch.compile`."""
        for network in self.children():
            network.compile(*args, **options)

    def setup(self, stage: str) -> None:
        """Makes the training environments and the buffer of this process, and says what is played."""
        name = type(self).__name__
        if self.trainer.datamodule is not None:
            raise ValueError(
                f"{name} plays its own environments: leave out --data {type(self.trainer.datamodule).__name__}"
            )
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise ValueError(
                f"{name} plays outside of its training step, which fsdp's shards of the weights cannot: set "
                "trainer.strategy to ddp"
            )
        super().setup(stage)
        if stage != "fit":
            inform(self.description)
            return
        self.env_constants = fresh_constants(**self.env_settings)
        seed = self.seed_for("train")
        self.rng = np.random.default_rng(seed)
        self.buffer, self.warmed_up = self.make_buffer(seed), False
        options = {name: self.hparams[name] for name in ("num_envs", "vectorization")}
        envs = make_vector_env(**options, **self.env_settings)
        inform(f"{self.description}; {describe_vectorization(envs)}")
        self.collector = Collector(envs, seed)

    def seed_for(self, purpose: str) -> int:
        """A seed from the run's, another one for every purpose, `train`, `eval` or `test`, and process."""
        number = ("train", "eval", "test").index(purpose)
        sequence = np.random.SeedSequence([torch.initial_seed() % 2**64, number, self.global_rank])
        return int(sequence.generate_state(1)[0]) % SEEDS

    @override
    def plots(self) -> list[Callback]:
        drawn = [ReturnPlot(), PolicyPlot()]
        return [*drawn, EpisodeVideo()] if self.hparams.eval_video else drawn

    @property
    def batches_per_epoch(self) -> int:
        """Training steps in an epoch, of `rollout_steps` of every environment each."""
        hp = self.hparams
        return max(1, hp.steps_per_epoch // (hp.num_envs * hp.rollout_steps * self.trainer.world_size))

    @property
    def planned_gradient_steps(self) -> float:
        """Gradient steps until the Trainer's `max_epochs` or `max_steps`; infinite if it has neither."""
        trainer, planned = self.trainer, math.inf
        if trainer.max_epochs >= 0:
            planned = trainer.max_epochs * trainer.num_training_batches * self.steps_per_batch
        if trainer.max_steps < 0:
            return planned
        steps = self.steps_per_batch
        return min(planned, math.ceil(trainer.max_steps / steps) * steps)  # a training step takes all of its own

    def policy(self, observation: np.ndarray) -> np.ndarray:
        """The greedy actions of an evaluation, which ends where the process is to end."""
        if self.trainer.received_sigterm:  # Lightning looks after a batch
            raise SIGTERMException
        return self.act(observation)

    def step_envs(self, action: np.ndarray) -> Step:
        """Steps the training environments, and counts it."""
        if self.rollout_length >= self.hparams.rollout_steps and self.trainer.received_sigterm:
            raise SIGTERMException  # in a warm-up; a rollout is finished, so that a resumed run is exact
        step = self.collector.collect(action, self.env_steps)
        self.env_steps += self.hparams.num_envs * self.trainer.world_size
        self.rollout_length += 1
        return step

    def step_schedules(self, interval: str) -> None:
        """Steps the learning-rate schedules that step every `step` of the optimizer, or every `epoch`."""
        for config in self.trainer.lr_scheduler_configs:
            if config.interval != interval or (interval == "epoch" and (self.current_epoch + 1) % config.frequency):
                continue
            metrics, monitor = self.trainer.callback_metrics, monitored(config.scheduler)
            if monitor and monitor not in metrics:
                raise ValueError(
                    f"ReduceLROnPlateau watches {monitor}, which is not logged: set model.lr_scheduler.monitor to one "
                    f"of {', '.join(metrics)}"
                )
            config.scheduler.step(*([metrics[monitor]] if monitor else []))

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.hparams.max_grad_norm is None:
            return
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ValueError("a fused optimizer cannot clip gradients of 16-mixed: set model.optimizer.fused to false")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.hparams.max_grad_norm)

    @property
    def train_metrics(self) -> tuple[str, ...]:
        """What is logged of a training epoch, by name."""
        return (*super().train_metrics, *self.schedules())

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        if self.buffer is not None and self.hparams.save_replay:
            size = self.buffer.nbytes / 1e6
            rank_zero_info(f"A checkpoint takes up to {size:,.1f} MB for the replay: model.save_replay")

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rollout_length = 0
        for name, total in self.means.totals.get("train", {}).items():
            if not math.isfinite(total):
                raise ValueError(
                    f"train/{name} is {total.item()} at environment step {self.env_steps}: lower model.optimizer.lr, "
                    "set model.max_grad_norm, or have smaller rewards (checkpoints hold finite weights alone)"
                )

    @override
    def on_train_epoch_end(self) -> None:
        metrics = self.epoch_metrics("train") | self.schedules()
        metrics = {f"train/{name}": value for name, value in metrics.items()}
        for config in self.trainer.lr_scheduler_configs:
            metrics[config.name or "train/lr"] = config.scheduler.optimizer.param_groups[0]["lr"]
        own = torch.tensor(list(self.collector.episode_stats.values()), device=self.device)
        episodes, returns, lengths = self.trainer.strategy.reduce(own, reduce_op="sum").tolist()
        self.collector.clear_stats()
        if episodes:
            metrics |= {"episode/return": returns / episodes, "episode/length": lengths / episodes}
            self.train_returns.append((self.env_steps, metrics["episode/return"]))
        self._log(metrics)
        self.step_schedules("epoch")

    @override
    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset(), batch_size=None, generator=torch.Generator())

    @override
    def val_dataloader(self) -> DataLoader:
        return DataLoader([0], generator=torch.Generator())  # one batch: all episodes

    test_dataloader = val_dataloader

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Plays greedy episodes, and logs their mean return and length."""
        returns, lengths = self._evaluate(self.hparams.eval_episodes, "eval")
        self._log({"eval/return": returns.mean(), "eval/length": lengths.mean()})
        if not self.trainer.sanity_checking:
            mean = torch.tensor(returns.mean(), dtype=torch.float32, device=self.device)
            self.eval_returns.append((self.env_steps, self.trainer.strategy.reduce(mean, reduce_op="mean").item()))

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Plays greedy episodes, and logs mean, standard deviation, minimum and maximum of their returns."""
        returns, lengths = self._evaluate(self.hparams.test_episodes, "test")
        self._log({"test/return": returns.mean(), "test/return_std": returns.std(), "test/length": lengths.mean()})
        self.log("test/return_min", returns.min(), reduce_fx="min", sync_dist=True)
        self.log("test/return_max", returns.max(), reduce_fx="max", sync_dist=True)

    @override
    def predict_dataloader(self) -> DataLoader:
        return DataLoader(range(self.hparams.test_episodes), generator=torch.Generator())

    @override
    def on_predict_start(self) -> None:
        self.predict_env = make_env(**self.env_settings, video_folder=self.video_folder)

    def predict_step(self, batch: Tensor, batch_idx: int) -> list[dict[str, Any]]:
        """Plays a greedy episode, and returns one row: its number, seed, return, length, and whether it terminated."""
        episode = batch.item()
        seed = self.seed_for("test") + episode
        total, length, terminated = play_episode(
            self.predict_env, self.policy, seed, max_steps=self.hparams.eval_max_steps
        )
        return [{"episode": episode, "seed": seed, "return": total, "length": length, "terminated": terminated}]

    @override
    def on_predict_end(self) -> None:
        self.predict_env.close()  # which finishes the last video

    @override
    def teardown(self, stage: str) -> None:
        if stage == "fit":
            self.collector.envs.close()
        if self.eval_envs is not None:
            self.eval_envs.close()
            self.eval_envs = None

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint |= {name: getattr(self, name) for name in (*COUNTERS, "env_constants")}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        name = checkpoint.get("model_class", "")
        if name.startswith("rl.") and all(name != f"rl.{kind.__name__}" for kind in type(self).__mro__):
            raise ValueError(f"the checkpoint is of {name}, not of {type(self).__name__}: load it with its own class")
        given, saved = self.hparams.env_id, checkpoint["hyper_parameters"]["env_id"]
        if given != saved:
            raise ValueError(f"the checkpoint's agent plays {saved}, not {given}")
        for name in COUNTERS:
            setattr(self, name, checkpoint[name])
        if self._trainer and (found := find_changes(checkpoint.get("env_constants", {}), **self.env_settings)):
            message = f"{given} is not as it was at the checkpoint ({found})"
            if self.trainer.training:
                raise ValueError(f"{message}: undo that, or start a new run without --ckpt_path")
            rank_zero_warn(f"{message}: returns are those of the environment as it is now")

    def training_state(self) -> dict[str, Any]:
        """What a checkpoint holds of this process, beyond weights and counters, to resume exactly."""
        replay = self.buffer is not None and self.hparams.save_replay
        return {
            "hparams": {name: self.hparams[name] for name in self.resume_must_match},
            "buffer": self.buffer.state_dict() if replay else None,
            "collector": self.collector.state_dict(),
            "rng": get_env_state(self.rng),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Resumes from a training state; what it lacks starts anew."""
        for name, value in state["hparams"].items():
            if self.hparams[name] != value:
                raise ValueError(
                    f"the checkpoint was written with {name} {value}, not {self.hparams[name]}: its state does not fit"
                )
        if state["buffer"] is not None:
            self.buffer.load_state_dict(state["buffer"])
        elif self.buffer is not None:
            rank_zero_info("The checkpoint holds no replay: the buffer is filled anew first")
        if not self.collector.load_state_dict(state["collector"]):
            rank_zero_info(f"The state of {self.hparams.env_id} cannot be saved: its environments start new episodes")
            if self.buffer is not None:
                self.buffer.drop_pending()
            self.collector.reset((self.seed_for("train") + self.env_steps) % SEEDS)  # not the first episodes again
        self.rng = set_env_state(self.rng, state["rng"])

    def _evaluate(self, episodes: int, purpose: str) -> tuple[np.ndarray, np.ndarray]:
        hp, settings = self.hparams, self.env_settings
        if self.eval_envs is None:
            # One environment per episode is fastest where they are arrays; else each waits for the longest.
            own = own_vector_form(num_envs=min(episodes, 100), **settings)
            self.eval_envs = own or make_vector_env(num_envs=min(episodes, hp.num_envs), **settings)
        return play_episodes(self.eval_envs, self.policy, episodes, self.seed_for(purpose), hp.eval_max_steps)

    def _log(self, metrics: dict[str, Any]) -> None:
        device = self.device if self.trainer.world_size > 1 else None  # where processes exchange it
        steps = torch.tensor(self.env_steps, dtype=torch.float64, device=device)
        # Lightning takes "step" for the x axis of the curves.
        self.log_dict({"env_steps": steps, "step": steps}, sync_dist=True)
        self.log_dict(metrics, prog_bar=True, sync_dist=True)
