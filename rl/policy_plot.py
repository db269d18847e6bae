"""A picture of an agent's policy and values, over two of the numbers that it observes."""

import math
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from lit_models.common.arguments import NonNegativeInt, check_arguments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rl.agent import Agent

POINTS = 100  # along each axis
PENDULUMS = ("Pendulum-v1", "VectorPendulum-v1")  # they observe an angle as cosine and sine, and the speed


class PolicyPlot(Callback):
    """Draws, when training ends, `policy`: the greedy action and the value of the state over two observed numbers.

    They are those that the greedy action depends on most, or those that are given. The range of the two, and the median
    at which all others are held, are those of the latest observations that the agent has learnt from. Of gymnasium's
    Pendulum the axes are angle and speed. Of an action of several numbers, the first is drawn. Where observations
    are no list of floats (images, stacked frames, choices), there is no picture.

    Args:
        dimensions: Indices of the observed numbers on the horizontal and on the vertical axis.

    Raises:
        ValueError: They are the same, or, when training starts, not of the environment's observations.
    """

    def __init__(self, dimensions: tuple[NonNegativeInt, NonNegativeInt] | None = None) -> None:
        check_arguments(PolicyPlot, locals())
        if dimensions is not None and not len(dimensions) == len(set(dimensions)) == 2:
            raise ValueError(f"dimensions is {list(dimensions)}: give two numbers that differ, such as [0, 1]")
        self.dimensions = dimensions
        self.seen: deque[Tensor] = deque(maxlen=10)  # observations of the latest batches

    @override
    def setup(self, trainer: Trainer, pl_module: "Agent", stage: str) -> None:
        if self.dimensions is None or not hasattr(pl_module, "observation_space"):
            return
        env_id, space = pl_module.hparams.env_id, pl_module.observation_space
        given = f"dimensions of PolicyPlot is {list(self.dimensions)}"
        if not is_list(space):
            raise ValueError(f"{given}: {env_id} has no observations of two floats or more: leave PolicyPlot out")
        if max(self.dimensions) >= (count := len(space.low)):
            raise ValueError(f"{given}: {env_id} has observations of {count} numbers: give two of 0 to {count - 1}")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: "Agent") -> None:
        self.seen.clear()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: "Agent", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_list(getattr(pl_module, "observation_space", None)) and hasattr(batch, "observation"):
            self.seen.append(batch.observation)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: "Agent") -> None:
        from lit_models.training import plots  # matplotlib takes half a second to import

        if self.seen and (writers := plots.tensorboard_writers(trainer)):
            figure = self.draw(pl_module)
            for writer in writers:
                writer.add_figure("policy", figure, pl_module.env_steps)

    @torch.no_grad()
    def draw(self, agent: "Agent") -> "Figure":
        """The picture of an agent, of which batches were seen."""
        from lit_models.training import figures

        names, x, y, observation = self.grid(agent)
        value = agent.value(observation.to(agent.device)).float().cpu()
        maps = (part.view(POINTS, POINTS) for part in (first_number(agent, observation), value))
        size = math.prod(agent.action_space.shape)
        title = "greedy action" if size == 1 else f"greedy action, the first of {size} numbers"
        return figures.plot_policy(names, x, y, *maps, first_bounds(agent.action_space), title, agent.value_label)

    def grid(self, agent: "Agent") -> tuple[tuple[str, str], Tensor, Tensor, Tensor]:
        """Names of the axes, points on them `(P,)` each, and the observations `(P * P, numbers)` there, row by row."""
        hp, steps = agent.hparams, torch.linspace(0, 1, POINTS)
        if hp.env_id in PENDULUMS and not hp.wrappers and self.dimensions is None:
            most = float(agent.observation_space.high[2])
            x, y = math.pi * (2 * steps - 1), most * (2 * steps - 1)
            speed, angle = torch.meshgrid(y, x, indexing="ij")
            observation = torch.stack([angle.cos(), angle.sin(), speed], dim=2)
            return ("angle [rad]", "speed [rad/s]"), x, y, observation.flatten(0, 1)
        seen = torch.cat([batch.flatten(0, -2) for batch in self.seen]).float().cpu()
        chosen = self.dimensions or decisive_dimensions(agent, thin(seen, 200))
        low, middle, high = thin(seen, 2000).quantile(torch.tensor([0.01, 0.5, 0.99]), dim=0, interpolation="nearest")
        high = torch.where(high > low, high, low + 1)
        x, y = (low[number] + (high - low)[number] * steps for number in chosen)
        observation = middle.repeat(POINTS, POINTS, 1)
        observation[:, :, chosen[0]], observation[:, :, chosen[1]] = x, y[:, None]
        return tuple(f"observation[{number}]" for number in chosen), x, y, observation.flatten(0, 1)


def is_list(space: spaces.Space | None) -> bool:
    """Whether observations are a list of floats, two or more."""
    return space is not None and len(space.shape) == 1 and space.shape[0] > 1 and space.dtype.kind == "f"


def thin(rows: Tensor, most: int) -> Tensor:
    """At most so many of the rows, evenly spaced."""
    return rows[:: math.ceil(len(rows) / most)]


def first_number(agent: "Agent", observation: Tensor) -> Tensor:
    """The first numbers `(batch,)` of the greedy actions for observations `(batch, numbers)`."""
    return torch.from_numpy(agent.act(observation)).view(len(observation), -1)[:, 0]


def first_bounds(space: spaces.Space) -> tuple[float, float]:
    """Bounds of the first number of an action."""
    if isinstance(space, spaces.Box):
        return float(space.low.flat[0]), float(space.high.flat[0])
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    counts = space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n
    start, count = int(np.ravel(space.start)[0]), int(np.ravel(counts)[0])
    return start, start + count - 1


def decisive_dimensions(agent: "Agent", seen: Tensor) -> list[int]:
    """The two of the numbers of observations `(batch, numbers)` that the greedy action depends on most, in order.

    That is how much it changes where an observation has the number of another one instead: permutation importance.
    """
    action, changes = first_number(agent, seen), []
    for number in range(seen.shape[1]):
        mixed = seen.clone()
        mixed[:, number] = seen[:, number].roll(len(seen) // 2)
        other = first_number(agent, mixed)
        change = (other - action).abs() if action.is_floating_point() else other != action
        changes.append(change.float().mean())
    return sorted(torch.stack(changes).argsort(descending=True, stable=True)[:2].tolist())
