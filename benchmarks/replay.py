"""What a training step of DQN on CartPole costs, part by part, with the config's sizes.

The parts are timed on their own, in the buffer and the environments of a short run; the whole training step is that of
the run itself, from the command line with everything on. What it takes beyond its parts is the Trainer's share, with
the bookkeeping, the weights' average and the files.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.agents import Stopwatch
from benchmarks.common import median, microseconds, options_parser, parse, train, write_results
from rl import DQN, ReplayBuffer


def gradient_step(agent: DQN, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Forward, loss, backward and optimizer on one minibatch, without a Trainer."""
    batch = agent.buffer.sample(1, agent.hparams.batch_size)
    target = agent.td_target(batch)[0]
    observation, action = batch.observation[0], batch.action[0][:, None]

    def step() -> None:
        optimizer.zero_grad()
        value = agent.network(observation).gather(1, action).squeeze(1)
        torch.nn.functional.mse_loss(value, target).backward()
        optimizer.step()

    return step


def main() -> None:
    """Runs, and writes benchmarks/results/replay.json."""
    options = parse(options_parser("replay", __doc__), "gymnasium")
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        agent = train("dqn_cartpole.yaml", 0, Path(folder), [watch], "--trainer.max_epochs=15").model
    own, buffer = agent.hparams, agent.buffer
    stack = (own.gradient_steps, own.batch_size)
    prioritized = ReplayBuffer(own.buffer_size, (4,), num_envs=own.num_envs, n_steps=own.n_steps, prioritized=True)
    no = torch.zeros(own.num_envs, dtype=torch.bool)
    seen = torch.rand(own.num_envs, 4)
    step = (seen, torch.zeros(own.num_envs, dtype=torch.int64), torch.ones(own.num_envs), seen, no, no)
    for _ in range(200):
        prioritized.add(*step)
    drawn = prioritized.sample(*stack)
    action = torch.zeros(own.num_envs, dtype=torch.int64).numpy()
    optimizer = agent.optimizer(agent.network.parameters())
    batch = buffer.sample(*stack)
    parts = {
        f"a step of {own.num_envs} environments": lambda: agent.collector.envs.step(action),
        f"the network's actions for {own.num_envs}": lambda: agent.act(agent.collector.observation.numpy()),
        f"adding {own.num_envs} steps, returns of {own.n_steps}": lambda: buffer.add(*step),
        f"sampling {stack[0]} x {stack[1]}": lambda: buffer.sample(*stack),
        "  prioritized": lambda: prioritized.sample(*stack),
        "  its new priorities": lambda: prioritized.update(drawn.index, drawn.reward),
        f"targets for {stack[0]} x {stack[1]}": lambda: agent.td_target(batch),
        "a gradient step": gradient_step(agent, optimizer),
    }
    print(f"{'part':<42}microseconds, median (least to greatest)")
    times = {}
    for name, call in parts.items():
        times[name.strip()] = microseconds(call)
        print(f"{name:<42}{median(times[name.strip()], 0)}", flush=True)
    environments, acting, adding, sampling, _, _, targets, gradient = map(statistics.median, times.values())
    playing = own.rollout_steps * (environments + acting + adding)
    sum_of_parts = playing + sampling + targets + own.gradient_steps * gradient
    whole = watch.run.seconds / (watch.run.gradient_steps / own.gradient_steps) * 1e6
    write_results(
        options,
        training_step={
            "gradient_steps": own.gradient_steps,
            "microseconds": times,
            "microseconds_of_the_parts": sum_of_parts,
            "microseconds_in_the_trainer": whole,
        },
    )


if __name__ == "__main__":
    main()
