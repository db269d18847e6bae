"""The article's GRU: MNIST row by row, and the Mackey-Glass series beside the Transformer and three older methods.

- *persistence*: the next row is like the last one;
- *linear autoregression* of the same window, by least squares over the training rows;
- *echo state network* (Jaeger, "The echo state approach to analysing and training recurrent neural networks", 2001):
  a fixed random reservoir of leaky tanh units, with a readout by ridge regression. It sees all rows before a window
  too, and of its spectral radius, leak and ridge the best on the validation rows are taken.

The three are computed in float64. Errors are NRMSE, over the standard deviation of the training rows, on all windows of
the test rows: one step ahead over the whole future of each, and running free at its last row. Every seed brings
another series, another initialisation and another reservoir.
"""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor

from benchmarks.common import accuracy, loading, options_parser, parameters, parse, test, train, write_results
from datamodules import TimeSeriesDataModule
from datamodules.common.windows import WindowDataset

Errors = tuple[float, float]  # one step ahead, and running free at the end of the horizon


def errors(ahead: Tensor, free: Tensor, future: Tensor) -> Errors:
    """NRMSE of scaled forecasts `(count, horizon)`."""
    return float((ahead - future).square().mean().sqrt()), float((free - future)[:, -1].square().mean().sqrt())


class Task:
    """The series, scaled, as the older methods see it: `(T,)` in float64, and its windows."""

    def __init__(self, data: TimeSeriesDataModule) -> None:
        data.setup("fit")
        data.setup("test")
        hp = data.hparams
        self.data, self.context_length, self.horizon = data, hp.context_length, hp.horizon
        self.series = (data.series[:, 0].double() - data.mean[0]) / data.std[0]
        self.train_rows = int(data.val_set.starts[0]) + hp.context_length

    def windows(self, dataset: WindowDataset) -> tuple[Tensor, Tensor, Tensor]:
        """First row of the target `(count,)`, context `(count, context_length)` and target `(count, horizon)`."""
        rows = self.series[dataset.starts[:, None] + dataset.offsets]
        return dataset.starts + self.context_length, rows[:, : self.context_length], rows[:, self.context_length :]


def persistence(task: Task) -> Errors:
    """The next row is like the last one."""
    _, past, future = task.windows(task.data.test_set)
    return errors(torch.cat([past[:, -1:], future[:, :-1]], dim=1), past[:, -1:].expand_as(future), future)


def autoregression(task: Task) -> Errors:
    """Linear, of the same window."""
    rows = task.series[: task.train_rows].unfold(0, task.context_length + 1, 1)

    def with_bias(x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)

    weights = torch.linalg.lstsq(with_bias(rows[:, :-1]), rows[:, -1:], driver="gelsd").solution[:, 0]
    _, past, future = task.windows(task.data.test_set)
    ahead = with_bias(torch.cat([past, future[:, :-1]], dim=1).unfold(1, task.context_length, 1)) @ weights
    free = past
    for _ in range(task.horizon):
        free = torch.cat([free, (with_bias(free[:, -task.context_length :]) @ weights)[:, None]], dim=1)
    return errors(ahead, free[:, task.context_length :], future)


class Reservoir:
    """An echo state network's fixed part, and its states `(T, units)` over the series."""

    def __init__(self, series: Tensor, units: int, radius: float, leak: float, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=draw, dtype=torch.float64) * 2 - 1

        recurrent = uniform(units, units) * (uniform(units, units).abs() < 10 / units)  # 10 connections a unit
        self.recurrent = recurrent * (radius / torch.linalg.eigvals(recurrent).abs().max())
        self.input, self.bias, self.leak = uniform(units) * 0.5, uniform(units) * 0.2, leak
        state, states = torch.zeros(units, dtype=torch.float64), []
        for x in series:
            state = self.step(state, x)
            states.append(state)
        self.features = self.with_input(torch.stack(states), series)

    def step(self, state: Tensor, x: Tensor) -> Tensor:
        """The state `(..., units)` after a row `(...,)`."""
        new = torch.tanh(state @ self.recurrent.T + x[..., None] * self.input + self.bias)
        return (1 - self.leak) * state + self.leak * new

    def with_input(self, state: Tensor, x: Tensor) -> Tensor:
        """What the readout sees: the state, the last row and a bias, `(..., units + 2)`."""
        return torch.cat([state, x[..., None], torch.ones_like(x[..., None])], dim=-1)

    def errors(self, task: Task, dataset: WindowDataset, readout: Tensor) -> Errors:
        """Those of a readout on windows."""
        first, _, future = task.windows(dataset)
        ahead = (self.features @ readout)[first[:, None] - 1 + torch.arange(task.horizon)]
        state, x, free = self.features[first - 1, :-2], ahead[:, 0], [ahead[:, 0]]
        for _ in range(task.horizon - 1):
            state = self.step(state, x)
            x = (self.with_input(state, x) @ readout).clamp(-10, 10)  # one that diverges stays a number
            free.append(x)
        return errors(ahead, torch.stack(free, dim=1), future)


def echo_state_network(task: Task, units: int, seed: int) -> Errors:
    """The best on the validation rows, by its error running free, of twelve."""
    found = []
    for radius, leak in itertools.product((0.8, 1.0), (0.3, 0.5)):
        reservoir = Reservoir(task.series, units, radius, leak, seed)
        x, y = reservoir.features[100 : task.train_rows - 1], task.series[101 : task.train_rows]  # 100 to warm up
        for ridge in (1e-6, 1e-8, 1e-10):
            gram = x.T @ x + ridge * torch.eye(units + 2, dtype=torch.float64)
            readout = torch.linalg.solve(gram, x.T @ y)
            found.append((reservoir.errors(task, task.data.val_set, readout)[1], reservoir, readout))
    _, reservoir, readout = min(found, key=lambda one: one[0])
    return reservoir.errors(task, task.data.test_set, readout)


def mackey_glass(seeds: int, folder: Path) -> dict[str, Any]:
    """The errors of the networks and of the older methods."""
    methods: dict[str, Callable[[Task, int], Errors]] = {
        "persistence": lambda task, seed: persistence(task),
        "linear_autoregression": lambda task, seed: autoregression(task),
        "echo_state_network_100": lambda task, seed: echo_state_network(task, 100, seed),
        "echo_state_network_400": lambda task, seed: echo_state_network(task, 400, seed),
    }
    networks = ("rnn", "transformer")
    figures: dict[str, Any] = {
        "seeds": list(range(seeds)),
        "seconds": {name: [] for name in networks},
        "parameters": {},
    }
    nrmse: dict[str, list[float]] = {name: [] for name in (*networks, *methods)}
    nrmse_free: dict[str, list[float]] = {name: [] for name in nrmse}
    for seed in range(seeds):
        found = {}
        for name in networks:
            timer = Timer()
            command = train(f"{name}_mackey_glass.yaml", seed, folder, [timer], f"--data.series_seed={seed}")
            metrics = test(command)
            found[name] = metrics["test/nrmse"], metrics["test/nrmse_free"]
            figures["seconds"][name].append(timer.time_elapsed("train"))
            figures["parameters"][name] = parameters(command.model)
        task = Task(TimeSeriesDataModule(**command.datamodule.hparams))
        found |= {name: method(task, seed) for name, method in methods.items()}
        for name, (ahead, free) in found.items():
            nrmse[name].append(ahead)
            nrmse_free[name].append(free)
            print(f"  seed {seed}: {name:<24}{ahead:.2e}  {free:.2e}", flush=True)
    return figures | {"nrmse": nrmse, "nrmse_free": nrmse_free}


def main() -> None:
    """Runs, and writes benchmarks/results/rnn.json."""
    parser = options_parser("rnn", __doc__, threads=2)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--only", choices=("rows", "mackey_glass", "loading"), help="one part, instead of all three")
    options = parse(parser)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only in (None, "rows"):
            write_results(options, rows=accuracy("rnn_mnist.yaml", options.seeds, folder))
        if options.only in (None, "mackey_glass"):
            write_results(options, mackey_glass=mackey_glass(options.seeds, folder))
        if options.only in (None, "loading"):
            short = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1"]
            runs = {
                config: train(f"{config}.yaml", 0, folder, [], *short) for config in ("rnn_mnist", "rnn_mackey_glass")
            }
            write_results(options, loading={config: loading(run) for config, run in runs.items()})


if __name__ == "__main__":
    main()
