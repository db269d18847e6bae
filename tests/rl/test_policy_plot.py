"""The picture of policy and values: what is drawn where, for whom, and what is refused."""

import gymnasium
import numpy as np
import pytest
import torch
import worlds
from conftest import ROOT, fails
from gymnasium import spaces
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from small import QUIET, small_actor_critic, small_agent
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_models.cli import main as cli
from rl import DDPG, DQN, PPO, SAC, PolicyPlot

several = {"action": spaces.MultiDiscrete([3, 2], start=[5, 0]), "observation": spaces.Box(-1, 1, (2,), np.float32)}
gymnasium.register("TwoChoices-v0", worlds.Other, kwargs=several)
gymnasium.register("Free-v0", worlds.Other, kwargs={**several, "action": spaces.Box(-np.inf, np.inf, (2, 2))})
gymnasium.register("Bits-v0", worlds.Other, kwargs={**several, "action": spaces.MultiBinary(3)})


@pytest.fixture(autouse=True)
def seeded():
    seed_everything(0)


def drawn(agent, seen=None, dimensions=None):
    """The axes of action, of value, and of their color bars, in the picture of an agent that has seen something."""
    plot = PolicyPlot(dimensions)
    plot.seen.append(torch.randn(8, 50, agent.observation_space.shape[0]) if seen is None else seen)
    figure = plot.draw(agent)
    figure.canvas.draw()
    return figure.axes


def cells(axes):
    """Numbers in the picture, and the x and y of each, all of the same shape."""
    (image,) = axes.images
    left, right, bottom, top = image.get_extent()
    assert image.origin == "lower"
    numbers = torch.tensor(np.asarray(image.get_array()))
    x, y = (
        torch.linspace(low, high, 2 * count + 1)[1::2]  # the middle of each
        for low, high, count in ((left, right, numbers.shape[1]), (bottom, top, numbers.shape[0]))
    )
    return numbers, *(part.T for part in torch.meshgrid(x, y, indexing="ij"))


class Known(SAC):
    """Twice the pendulum's sine as action, and its speed as value."""

    def greedy(self, observation):
        return 2 * observation[:, 1:2]

    def value(self, observation):
        assert observation[:, :2].square().sum(dim=1).sub(1).abs().max() < 1e-5
        return observation[:, 2]


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "VectorPendulum-v1"])
def test_pendulum_is_drawn_over_angle_and_speed(env_id):
    left, right, left_bar, right_bar = drawn(Known(env_id))
    action, angle, speed = cells(left)
    torch.testing.assert_close(action, 2 * angle.sin(), atol=1e-4, rtol=0)
    torch.testing.assert_close(cells(right)[0], speed, atol=1e-4, rtol=0)
    assert (left.get_xlabel(), left.get_ylabel()) == ("angle [rad]", "speed [rad/s]")
    assert (*left.get_xlim(), *left.get_ylim()) == pytest.approx((-np.pi, np.pi, -8, 8))
    assert left.images[0].get_clim() == left_bar.get_ylim() == (-2, 2)
    assert "Q(s, a)" in right_bar.get_ylabel()


@pytest.mark.parametrize(
    ("agent", "value"),
    [
        (lambda: DQN("CartPole-v1", hidden_sizes=(8,)), lambda agent, seen: agent(seen).amax(dim=1)),
        (
            lambda: PPO("CartPole-v1", hidden_sizes=(8,), reward_scale=0.25, normalize_observations=True),
            lambda agent, seen: 4 * agent.network.evaluate(seen),
        ),
        (
            lambda: DDPG("Pendulum-v1", hidden_sizes=(8,), twin=True),
            lambda agent, seen: agent.critics(seen, agent(seen) / 2).amin(dim=0),
        ),
        (
            lambda: SAC("Pendulum-v1", hidden_sizes=(8,)),
            lambda agent, seen: agent.critics(seen, agent(seen) / 2).amin(dim=0),
        ),
    ],
    ids=["DQN", "PPO", "DDPG", "SAC"],
)
def test_chosen_dimensions_are_drawn_with_the_others_at_their_median(agent, value):
    agent = agent()
    count = agent.observation_space.shape[0]
    seen = torch.randn(301, count) * torch.arange(1, count + 1) + 5
    left, right, *_ = drawn(agent, seen, (2, 0))
    action, third, first = cells(left)
    observation = seen.median(dim=0).values.repeat(*action.shape, 1)
    observation[..., 2], observation[..., 0] = third, first
    observation = observation.flatten(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(cells(right)[0].flatten(), value(agent, observation), atol=1e-4, rtol=1e-3)
    same = np.isclose(agent.act(observation).reshape(-1), action.flatten(), atol=1e-4)
    assert same.mean() > 0.999  # a choice may be another one by a rounding
    assert (left.get_xlabel(), left.get_ylabel()) == ("observation[2]", "observation[0]")
    low, high = seen[:, [2, 0]].quantile(torch.tensor([0.01, 0.99]), dim=0, interpolation="nearest").tolist()
    assert (*left.get_xlim(), *left.get_ylim()) == pytest.approx((low[0], high[0], low[1], high[1]))


class Two(PPO):
    """Whose action is a matter of the second and the fourth number, little of the first, and not of the third."""

    def greedy(self, observation):
        return (observation @ torch.tensor([0.1, 10.0, 0.0, -1.0]) > 0).long()


def test_without_a_choice_those_that_the_action_depends_on_most_are_drawn():
    seen = torch.randn(500, 4) * torch.tensor([1.0, 0.1, 100.0, 1.0])
    left, *_ = drawn(Two("CartPole-v1"), seen)
    assert (left.get_xlabel(), left.get_ylabel()) == ("observation[1]", "observation[3]")
    action, second, fourth = cells(left)
    assert torch.equal(action[fourth > 10 * second + 0.1], torch.zeros_like(action[fourth > 10 * second + 0.1]))
    assert {0, 1} == set(action.flatten().tolist())


@pytest.mark.parametrize(
    ("agent", "title", "bounds"),
    [
        (lambda: DQN("Acrobot-v1"), "greedy action", (-0.5, 2.5)),
        (lambda: PPO("TwoChoices-v0"), "greedy action, the first of 2 numbers", (4.5, 7.5)),
        (lambda: PPO("Bits-v0"), "greedy action, the first of 3 numbers", (-0.5, 1.5)),
        (lambda: SAC(wrappers=["worlds.TwoTorques"]), "greedy action, the first of 2 numbers", (-1, 1)),
        (lambda: PPO("Free-v0"), "greedy action, the first of 4 numbers", None),
    ],
)
def test_actions_of_all_kinds(agent, title, bounds):
    agent = agent()
    left, *_, bar, _ = drawn(agent)
    assert left.get_title() == title
    assert left.get_xlabel().startswith("observation[")
    low, high = left.images[0].get_clim()
    assert (low, high) == bounds if bounds else low == -high < 0
    if agent.action_space.dtype.kind != "f":
        ticks = [tick for tick in bar.get_yticks() if low < tick < high]
        assert ticks == list(range(round(low + 0.5), round(high + 0.5)))


def test_constant_numbers_are_drawn():
    left, *_ = drawn(small_agent(), torch.ones(20, 4))
    assert left.get_xlim() == left.get_ylim() == (1, 2)


def train(agent, folder, *callbacks):
    """Images by tag of a tiny run."""
    logger = TensorBoardLogger(folder, "", "")
    short = {"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 0, "enable_checkpointing": False}
    Trainer(callbacks=[*callbacks], **short, **QUIET | {"logger": logger}).fit(agent)
    return EventAccumulator(str(folder)).Reload().Tags()["images"]


@pytest.mark.parametrize(
    ("agent", "shown"),
    [
        (lambda: small_agent(), True),
        (lambda: small_actor_critic(SAC), True),
        (lambda: small_actor_critic(DDPG), True),
        (lambda: PPO(num_envs=4, batch_size=32, epochs=1), True),
        (lambda: small_agent(env_id="Screen-v0"), False),
        (lambda: small_agent(env_id="Wages-v0"), False),
        (lambda: small_agent(env_id="FrozenLake-v1"), False),
        (lambda: small_agent(frame_stack=2), False),
    ],
    ids=["DQN", "SAC", "DDPG", "PPO", "image", "one number", "one-hot", "stack"],
)
def test_who_gets_a_picture(agent, shown, tmp_path):
    assert ("policy" in train(agent(), tmp_path)) == shown


def test_one_of_a_config_takes_the_place_of_the_agents(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "trainer: {callbacks: [{class_path: rl.PolicyPlot, init_args: {dimensions: [0, 2]}}]}"
    )
    configs = [f"--config={ROOT / 'configs' / 'dqn_cartpole.yaml'}", f"--config={tmp_path / 'own.yaml'}"]
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", f"--trainer.default_root_dir={tmp_path}"]
    command = cli.CLI(["fit", *configs, *short])
    (plot,) = (callback for callback in command.trainer.callbacks if isinstance(callback, PolicyPlot))
    assert tuple(plot.dimensions) == (0, 2)
    left, *_ = plot.draw(command.model).axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("observation[0]", "observation[2]")


@pytest.mark.parametrize(
    ("dimensions", "env_id", "message"),
    [
        ("[0, 4]", "CartPole-v1", "is [0, 4]: CartPole-v1 has observations of 4 numbers: give two of 0 to 3"),
        ("[1, 1]", "CartPole-v1", "dimensions is [1, 1]: give two numbers that differ, such as [0, 1]"),
        ("[-1, 1]", "CartPole-v1", "dimensions is -1: it must be at least 0"),
        ("[0, 1]", "FrozenLake-v1", "FrozenLake-v1 has no observations of two floats or more: leave"),
    ],
)
def test_dimensions_that_are_not_there_are_refused(dimensions, env_id, message, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text(
        f"trainer: {{callbacks: [{{class_path: rl.PolicyPlot, init_args: {{dimensions: {dimensions}}}}}]}}"
    )
    flags = [f"--model.env_id={env_id}", f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=1"]
    flags += ["--trainer.limit_train_batches=1", f"--config={tmp_path / 'own.yaml'}"]
    assert message in fails(capsys, "fit", "--model=DQN", *flags)
    assert not list(tmp_path.rglob("*.ckpt"))
