"""DQN on CartPole: ours against stable-baselines3 with its model zoo's recipe, on the same machine and threads.

Both are evaluated alike: 100 greedy episodes after every epoch (ours, 2,880 environment steps) or every 2,000 steps, in
environments of their own, with the clock stopped. *First hit* is the training time until such an evaluation first
reaches 475, *at the end* the mean return of 100 greedy episodes of the agent as it is when training ends. Ours is run
from the command line with everything on: curves, checkpoints with the replay, progress bar.
"""

import importlib.util
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from benchmarks.common import options_parser, parameters, parse, test, train, write_results
from rl.envs import make_vector_env
from rl.evaluation import play_episodes

TARGET = 475
CADENCE = 2_000
# https://github.com/DLR-RM/rl-baselines3-zoo, hyperparams/dqn.yml
ZOO = {
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
}
ZOO_STEPS = 50_000


@dataclass
class Run:
    """One training run: its speed, and the returns of its evaluations with the training seconds before them."""

    seconds: float = 0.0
    wall: float = 0.0
    env_steps: int = 0
    gradient_steps: int = 0
    parameters: int = 0
    final_return: float = 0.0
    evaluations: list[tuple[float, float]] = field(default_factory=list)

    @property
    def first_hit(self) -> float | None:
        """Training seconds until the target was first reached."""
        return next((seconds for seconds, value in self.evaluations if value >= TARGET), None)


class Stopwatch(Callback):
    """Times the training of a Trainer, without its evaluations."""

    def __init__(self) -> None:
        self.run = Run()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clock."""
        self.began = self.started = time.perf_counter()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stops the clock."""
        if not trainer.sanity_checking:
            self.run.seconds += time.perf_counter() - self.started

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Takes the evaluation down, and lets the clock go on."""
        if not trainer.sanity_checking:
            self.run.evaluations.append((self.run.seconds, trainer.callback_metrics["eval/return"].item()))
            self.started = time.perf_counter()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stops the clock."""
        now = time.perf_counter()
        self.run.seconds, self.run.wall = self.run.seconds + now - self.started, now - self.began
        self.run.env_steps, self.run.gradient_steps = pl_module.env_steps, pl_module.gradient_steps
        self.run.parameters = parameters(pl_module.network)


def ours(config: str, seed: int, folder: Path) -> Run:
    """A run of one of our configs from the command line."""
    watch = Stopwatch()
    command = train(config, seed, folder, [watch])
    watch.run.final_return = test(command)["test/return"]
    return watch.run


def zoo(seed: int) -> Run:
    """A run of stable-baselines3."""
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback

    run, evaluators = Run(), make_vector_env("CartPole-v1", 100)

    class Evaluated(BaseCallback):
        def _on_training_start(self) -> None:
            self.began = self.started = time.perf_counter()

        def _on_step(self) -> bool:
            if self.num_timesteps % CADENCE == 0:
                run.seconds += time.perf_counter() - self.started
                returns, _ = play_episodes(
                    evaluators, lambda seen: model.predict(seen, deterministic=True)[0], 100, seed
                )
                run.evaluations.append((run.seconds, returns.mean()))
                self.started = time.perf_counter()
            return True

        def _on_training_end(self) -> None:
            now = time.perf_counter()
            run.seconds, run.wall = run.seconds + now - self.started, now - self.began

    model = DQN("MlpPolicy", "CartPole-v1", seed=seed, device="cpu", **ZOO)
    model.learn(ZOO_STEPS, callback=Evaluated())
    run.env_steps, run.gradient_steps = model.num_timesteps, model._n_updates
    run.parameters, run.final_return = parameters(model.q_net), run.evaluations[-1][1]
    return run


def main() -> None:
    """Runs, and writes benchmarks/results/dqn.json."""
    parser = options_parser("dqn", __doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first run (default: 0)")
    parser.add_argument("--only", choices=["ours", "sb3"], help="one of the two (default: both, in turn)")
    parser.add_argument("--config", default="dqn_cartpole.yaml", help="the config of ours (default: dqn_cartpole.yaml)")
    options = parse(parser, "gymnasium", "stable-baselines3")
    if options.only != "ours" and importlib.util.find_spec("stable_baselines3") is None:
        parser.error("stable-baselines3 is not installed: pip install -e '.[bench]', or leave it out with --only ours")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs: dict[str, list[Run]] = {name: [] for name in ("ours", "sb3") if options.only in (None, name)}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for name, found in runs.items():
                found.append(ours(options.config, seed, Path(folder)) if name == "ours" else zoo(seed))
                print(f"seed {seed}: {name:<5} {describe(found[-1])}", flush=True)
                torch.set_num_threads(options.threads)
    parts = {"ours": Path(options.config).stem, "sb3": "stable_baselines3"}
    write_results(options, **{parts[name]: {"seeds": list(seeds)} | figures(found) for name, found in runs.items()})


def figures(runs: list[Run]) -> dict[str, Any]:
    """Figures of every seed: `seconds_to_475` is null where a run never got there, `seconds` includes evaluations."""
    return {
        "parameters": runs[0].parameters,
        "env_steps": [run.env_steps for run in runs],
        "env_steps_per_second": [run.env_steps / run.seconds for run in runs],
        "gradient_steps_per_second": [run.gradient_steps / run.seconds for run in runs],
        f"seconds_to_{TARGET}": [run.first_hit for run in runs],
        "final_return": [run.final_return for run in runs],
        "seconds": [run.wall for run in runs],
    }


def describe(run: Run) -> str:
    """One line."""
    hit = "never" if run.first_hit is None else f"after {run.first_hit:.2f} s"
    return (
        f"{run.env_steps} steps in {run.seconds:.1f} s ({run.wall:.1f} s in all), first hit {hit}, "
        f"at the end {run.final_return:.1f}"
    )


if __name__ == "__main__":
    main()
