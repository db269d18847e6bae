"""The agents' configs, beside stable-baselines3 with the recipes of its model zoo, and beside plain loops.

All are evaluated alike: greedy episodes after every epoch (ours) or every so many steps, in environments of their own,
with the clock stopped. *To the target* is the training time until such an evaluation first reaches it, *at the end* the
mean return of the agent as it is when training ends, for all from the same starts. Ours is run from the command line
with everything on: curves, checkpoints with the replay, progress bar.
"""

import importlib.util
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from benchmarks import raw_agents, zoo
from benchmarks.common import options_parser, parameters, parse, train, write_results
from benchmarks.report import AGENTS
from rl.agent import Agent
from rl.envs import make_vector_env
from rl.evaluation import Policy, play_episodes

STARTS = 1_000_000  # seed of the episodes that all are compared on at the end


class Task(NamedTuple):
    """What a config is measured with."""

    seeds: int = 5
    episodes: int = 20  # of an evaluation in training
    flags: tuple[str, ...] = ()


SPEED = ("--trainer.max_epochs=2", "--model.steps_per_epoch=2000", "--model.learning_starts=100")
TARGETS = {name: target for name, (_, target) in AGENTS.items()}
TASKS = {name: Task() for name in AGENTS} | {
    "dqn_cartpole": Task(seeds=20, episodes=100),
    "ppo_cartpole": Task(seeds=20, episodes=100),
    "sac_halfcheetah": Task(seeds=2, episodes=1, flags=SPEED),  # its speed alone
}


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

    def first_hit(self, target: float | None) -> float | None:
        """Training seconds until the target was first reached."""
        if target is None:
            return None
        return next((seconds for seconds, value in self.evaluations if value >= target), None)


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
        self.run.parameters = parameters(pl_module)


def ours(name: str, seed: int, folder: Path) -> tuple[Run, Agent]:
    """A run of one of our configs from the command line."""
    watch, task = Stopwatch(), TASKS[name]
    agent = train(f"{name}.yaml", seed, folder, [watch], f"--model.eval_episodes={task.episodes}", *task.flags).model
    if name in TARGETS:
        watch.run.final_return = final_return(agent, agent.act)
    return watch.run, agent


def final_return(agent: Agent, policy: Policy) -> float:
    """The mean return of a policy in an agent's environment: as many episodes as its `test` plays, from `STARTS`."""
    episodes = agent.hparams.test_episodes
    envs = make_vector_env(num_envs=min(episodes, 100), **agent.env_settings)
    return play_episodes(envs, policy, episodes, STARTS)[0].mean()


def theirs(name: str, seed: int, agent: Agent) -> Run:
    """A run of stable-baselines3 in the environment of our agent."""
    from stable_baselines3.common.callbacks import BaseCallback

    run, task, steps = Run(), TASKS[name], zoo.STEPS[name]
    evaluators = make_vector_env(num_envs=task.episodes, **agent.env_settings)
    cadence = min(agent.hparams.steps_per_epoch, steps)

    class Evaluated(BaseCallback):
        def _on_training_start(self) -> None:
            self.began = self.started = time.perf_counter()

        def _on_step(self) -> bool:
            if self.num_timesteps // cadence > len(run.evaluations):
                run.seconds += time.perf_counter() - self.started
                returns, _ = play_episodes(evaluators, policy, task.episodes, seed)
                run.evaluations.append((run.seconds, returns.mean()))
                self.started = time.perf_counter()
            return True

        def _on_training_end(self) -> None:
            now = time.perf_counter()
            run.seconds, run.wall = run.seconds + now - self.started, now - self.began

    model, policy = zoo.make(name, seed)
    model.learn(steps, callback=Evaluated())
    run.env_steps, run.gradient_steps = model.num_timesteps, zoo.gradient_steps(model)
    run.parameters = parameters(model.policy)
    if name in TARGETS:
        run.final_return = final_return(agent, policy)
    return run


def main() -> None:
    """Runs, and writes benchmarks/results/agents.json."""
    parser = options_parser("agents", __doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"configs (default: all of {', '.join(TASKS)})")
    parser.add_argument("--seeds", type=int, help="runs of each (default: 20 on CartPole, 5 elsewhere)")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first run (default: 0)")
    parser.add_argument(
        "--peers", type=int, default=3, help="runs of stable-baselines3, in turn with ours (default: 3)"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help=f"against plain loops instead: {', '.join(raw_agents.LOOPS)}",
    )
    options = parse(parser, "gymnasium", "mujoco", "stable-baselines3")
    tasks = options.tasks or list(raw_agents.LOOPS if options.raw else TASKS)
    if unknown := set(tasks) - set(raw_agents.LOOPS if options.raw else TASKS):
        parser.error(f"there is no task {', '.join(sorted(unknown))}")
    if options.peers and not options.raw and importlib.util.find_spec("stable_baselines3") is None:
        parser.error("stable-baselines3 is not installed: pip install -e '.[bench]', or leave it out with --peers 0")
    for name in tasks:
        seeds = range(options.first_seed, options.first_seed + (options.seeds or TASKS[name].seeds))
        if options.raw:
            write_results(options, **{f"raw_{name}": beside_plain_loop(name, seeds)})
        else:
            write_results(options, **beside_peer(name, seeds, options.peers, options.threads))


def beside_peer(name: str, seeds: range, peers: int, threads: int) -> dict[str, dict[str, Any]]:
    """The figures of a task, ours and stable-baselines3's."""
    runs: dict[str, list[Run]] = {name: [], f"stable_baselines3_{name}": []}
    own, other = runs.values()
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds):
            run, agent = ours(name, seed, Path(folder))
            own.append(run)
            print(f"seed {seed}: {name} {describe(run, name)}", flush=True)
            if number < peers and name in zoo.STEPS:
                other.append(theirs(name, seed, agent))
                print(f"seed {seed}: stable-baselines3 {describe(other[-1], name)}", flush=True)
            torch.set_num_threads(threads)  # whatever a library has set
    target = TARGETS.get(name)
    return {
        part: {"seeds": list(seeds)[: len(found)]} | figures(found, target) for part, found in runs.items() if found
    }


def beside_plain_loop(name: str, seeds: range) -> dict[str, Any]:
    """Seconds of ours with everything on, and of a plain loop that plays as many evaluations."""
    found: dict[str, Any] = {"seeds": list(seeds), "seconds": [], "seconds_of_a_plain_loop": [], "final_return": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            run, agent = ours(name, seed, Path(folder))
            seconds, policy = raw_agents.train(name, agent, seed)
            found["seconds"].append(run.wall)
            found["seconds_of_a_plain_loop"].append(seconds)
            found["final_return"].append(final_return(agent, policy))
            said = f"{run.wall:.1f} s, a plain loop {seconds:.1f} s, at the end {found['final_return'][-1]:.1f}"
            print(f"seed {seed}: {name} {said}", flush=True)
    return found


def figures(runs: list[Run], target: float | None) -> dict[str, Any]:
    """Figures of every seed: `seconds_to_target` is null where it was never reached, `seconds` with evaluations."""
    found: dict[str, Any] = {
        "parameters": runs[0].parameters,
        "env_steps": [run.env_steps for run in runs],
        "env_steps_per_second": [run.env_steps / run.seconds for run in runs],
        "gradient_steps_per_second": [run.gradient_steps / run.seconds for run in runs],
        "seconds": [run.wall for run in runs],
    }
    if target is None:
        return found
    hits = [run.first_hit(target) for run in runs]
    return found | {"seconds_to_target": hits, "final_return": [run.final_return for run in runs]}


def describe(run: Run, name: str) -> str:
    """One line."""
    hit = run.first_hit(TARGETS.get(name))
    return (
        f"{run.env_steps} steps in {run.seconds:.1f} s ({run.wall:.1f} s in all), to the target "
        f"{'never' if hit is None else f'after {hit:.2f} s'}, at the end {run.final_return:.1f}"
    )


if __name__ == "__main__":
    main()
