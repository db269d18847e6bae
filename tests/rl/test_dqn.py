"""DQN, against values worked out by hand, small worlds whose values are known, and itself when it was stopped."""

import csv
import io
import os
import subprocess
import sys
from enum import Enum
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
import worlds  # noqa: F401  registers the environments
from conftest import ROOT, fails
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import FSDPStrategy
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.lr_scheduler import LinearLR, OneCycleLR

from lit_models.cli import main as cli
from rl import DQN
from rl.agent import COUNTERS
from rl.buffers import Transitions
from rl.env_state import get_env_state, set_env_state
from rl.envs import make_vector_env
from rl.evaluation import play_episodes
from rl.networks import QNetwork, as_channels

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
CARTPOLE = ROOT / "configs" / "dqn_cartpole.yaml"


def learn(epochs, **options):
    """A trained agent; the network is linear unless said otherwise, which makes it a table for one-hot states."""
    seed_everything(0)
    given = {"hidden_sizes": (), "optimizer": partial(torch.optim.Adam, lr=0.02), "loss": "mse", "epsilon_end": 1.0}
    agent = DQN(**given | {"learning_starts": 64, "eval_episodes": 1, "steps_per_epoch": 800} | options)
    Trainer(max_epochs=epochs, enable_checkpointing=False, **QUIET).fit(agent)
    return agent


def stack(rewards, terminated, *, discount=0.9, weight=None):
    """A stack of one minibatch of CartPole's observations, all their own next ones."""
    count = len(rewards)
    seen = torch.eye(4)[:count][None]
    return Transitions(
        seen,
        torch.zeros(1, count, dtype=torch.int64),
        torch.tensor([rewards]),
        seen,
        torch.tensor([terminated]),
        torch.full((1, count), discount),
        torch.ones(1, count) if weight is None else torch.tensor([weight]),
        torch.arange(count)[None],
    )


def table(network, values):
    """Makes a linear network say `values` `(4, 2)` of the four unit vectors."""
    with torch.no_grad():
        network.advantage.weight.copy_(torch.tensor(values).T)
        network.advantage.bias.zero_()


def test_default_network_is_the_articles():
    agent = DQN()
    assert sum(parameter.numel() for parameter in agent.parameters() if parameter.requires_grad) == 17_410
    first, second = agent.network.hidden
    seen = torch.randn(3, 4)
    expected = agent.network.advantage(second(first(seen).relu()).relu())
    assert torch.equal(agent(seen), expected)


def test_layers_are_normalised_before_their_activation():
    network = QNetwork((4,), False, 2, hidden_sizes=(8,), activation="tanh", layer_norm=True)
    seen = torch.randn(3, 4)
    hidden = network.hidden[0](seen)
    spread = hidden.var(dim=1, keepdim=True, correction=0)
    normal = (hidden - hidden.mean(dim=1, keepdim=True)) / (spread + 1e-5).sqrt()
    torch.testing.assert_close(network(seen), network.advantage(normal.tanh()))


def test_td_target_by_hand():
    agent = DQN(hidden_sizes=())
    table(agent.network, [[1.0, 2.0], [4.0, 3.0], [0.0, 0.0], [0.0, 0.0]])
    table(agent.target, [[10.0, 20.0], [30.0, 40.0], [50.0, 60.0], [0.0, 0.0]])
    batch = stack([1.0, 2.0, 3.0], [False, False, True])
    assert agent.td_target(batch).tolist() == [pytest.approx([1 + 0.9 * 20, 2 + 0.9 * 40, 3])]


def test_double_lets_the_network_choose_and_the_target_network_value():
    agent = DQN(hidden_sizes=(), double=True)
    table(agent.network, [[1.0, 2.0], [4.0, 3.0], [0.0, 0.0], [0.0, 0.0]])
    table(agent.target, [[10.0, 20.0], [30.0, 40.0], [50.0, 60.0], [0.0, 0.0]])
    batch = stack([1.0, 2.0, 3.0], [False, False, True], discount=0.5)
    assert agent.td_target(batch).tolist() == [pytest.approx([1 + 0.5 * 20, 2 + 0.5 * 30, 3])]


def test_dueling_is_value_plus_advantage_over_the_mean():
    network = QNetwork((4,), False, 3, hidden_sizes=(), dueling=True)
    with torch.no_grad():
        network.advantage.weight.zero_()
        network.value.weight.zero_()
        network.advantage.bias.copy_(torch.tensor([1.0, 2.0, 6.0]))
        network.value.bias.fill_(10)
    assert network(torch.zeros(1, 4)).tolist() == [[8, 9, 13]]


@pytest.mark.parametrize(
    ("loss", "expected"), [("mse", (0.5 * 3**2 + 1 * 0.5**2) / 2), ("huber", (0.5 * 2.5 + 1 * 0.125) / 2)]
)
def test_loss_and_gradient_by_hand(loss, expected):
    seed_everything(0)
    agent = DQN(hidden_sizes=(), loss=loss, gradient_steps=1, optimizer=partial(torch.optim.SGD, lr=1.0))
    Trainer(max_epochs=1, limit_train_batches=0, limit_val_batches=0, **QUIET).fit(agent)
    table(agent.network, [[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    batch = stack([4.0, 2.5], [True, True], weight=[0.5, 1.0])
    agent.means.reset("train")
    agent.training_step(batch, 0)
    assert agent.means.totals["train"]["loss"].item() == pytest.approx(expected)
    moved = {"mse": (0.5 * 2 * 3 / 2, 2 * 0.5 / 2), "huber": (0.5 * 1 / 2, 0.5 / 2)}[loss]
    weight = agent.network.advantage.weight.detach()
    assert weight[0].tolist() == pytest.approx([1 + moved[0], 2 + moved[1], 0, 0])
    assert weight[1].tolist() == [0, 0, 0, 0]  # the action that was not taken


def test_gradients_are_clipped_to_their_norm():
    seed_everything(0)
    agent = DQN(
        hidden_sizes=(), gradient_steps=1, loss="mse", max_grad_norm=0.1, optimizer=partial(torch.optim.SGD, lr=1.0)
    )
    Trainer(max_epochs=1, limit_train_batches=0, limit_val_batches=0, **QUIET).fit(agent)
    before = [parameter.detach().clone() for parameter in agent.network.parameters()]
    agent.training_step(stack([400.0, 250.0], [True, True]), 0)
    moved = [new - old for new, old in zip(agent.network.parameters(), before, strict=True)]
    assert torch.cat([part.flatten() for part in moved]).norm().item() == pytest.approx(0.1, rel=1e-3)


def test_target_network_is_copied_or_follows():
    for tau in (1.0, 0.25):
        seed_everything(0)
        agent = DQN(hidden_sizes=(), gradient_steps=1, tau=tau, target_update_interval=2)
        Trainer(max_epochs=1, limit_train_batches=0, limit_val_batches=0, **QUIET).fit(agent)
        old = agent.target.advantage.weight.clone()
        agent.training_step(stack([4.0, 2.0], [True, True]), 0)
        assert torch.equal(agent.target.advantage.weight, old)
        agent.training_step(stack([4.0, 2.0], [True, True]), 1)
        torch.testing.assert_close(agent.target.advantage.weight, old.lerp(agent.network.advantage.weight, tau))


def test_average_of_the_weights_is_the_greedy_policy():
    seed_everything(0)
    agent = DQN(hidden_sizes=(), gradient_steps=2, ema_decay=0.9)
    Trainer(max_epochs=1, limit_train_batches=0, limit_val_batches=0, **QUIET).fit(agent)
    expected = agent.network.advantage.weight.detach().clone()
    seen = []
    agent.optimizers()._optimizer.register_step_post_hook(
        lambda *_: seen.append(agent.network.advantage.weight.detach().clone())
    )
    agent.training_step(Transitions(*(part.expand(2, *part.shape[1:]) for part in stack([4.0, 2.0], [True] * 2))), 0)
    for weight in seen:
        expected = expected * 0.9 + weight * 0.1
    torch.testing.assert_close(agent.ema_network.advantage.weight, expected)
    torch.testing.assert_close(agent(torch.eye(4)).T, expected + agent.ema_network.advantage.bias[:, None])


def test_epsilon_falls_linearly_and_stays():
    agent = DQN(epsilon_end=0.1, epsilon_steps=1000)
    shares = []
    for agent.env_steps in (0, 500, 1000, 5000):
        shares.append(agent.epsilon)
    assert shares == pytest.approx([1, 0.55, 0.1, 0.1])


@pytest.mark.parametrize(
    "options", [{}, {"double": True, "dueling": True, "prioritized": True}, {"tau": 0.05, "target_update_interval": 1}]
)
def test_learns_the_values_of_two_states(options):
    agent = learn(4, env_id="TwoStates-v0", gamma=0.9, **{"target_update_interval": 5} | options)
    values = agent(torch.eye(2))
    # Of state 1: 2, or 0.9 times state 0's; of state 0: 0.9 times 2, or 1.
    torch.testing.assert_close(values, torch.tensor([[1.8, 1.0], [2.0, 0.9 * 1.8]]), atol=0.05, rtol=0)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_break_is_not_an_end(n_steps):
    options = {"env_id": "Wages-v0", "gamma": 0.9, "n_steps": n_steps, "tau": 0.2, "target_update_interval": 1}
    broken_off = learn(4, **options)(torch.ones(1, 1))
    torch.testing.assert_close(broken_off, torch.full((1, 2), 10.0), atol=0.3, rtol=0)  # 1 / (1 - 0.9)
    ended = learn(4, env_options={"terminates": True}, **options)(torch.ones(1, 1))
    assert ended.max() < 6  # the wrong value, were a break taken for an end


def test_images_are_learnt_from():
    agent = learn(
        2,
        env_id="Screen-v0",
        hidden_sizes=(32,),
        gamma=0.0,
        buffer_size=1000,
        batch_size=16,
        optimizer=partial(torch.optim.Adam, lr=1e-3),
    )
    kernels = [tuple(layer.weight.shape) for layer in agent.network.convolutions[::2]]
    assert kernels == [(32, 3, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)]
    dark, bright = agent(torch.stack([torch.full((40, 36, 3), shade, dtype=torch.uint8) for shade in (20, 200)]))
    assert dark.tolist() == pytest.approx([1, 0], abs=0.1)
    assert bright.tolist() == pytest.approx([0, 1], abs=0.1)


@pytest.mark.parametrize(
    ("options", "shape", "channels"),
    [
        ({}, (40, 36, 3), 3),
        ({"grayscale": True}, (40, 36), 1),
        ({"frame_stack": 4}, (4, 40, 36, 3), 12),
        ({"grayscale": True, "frame_stack": 4}, (4, 40, 36), 4),
    ],
)
def test_images_are_grey_and_stacked_as_asked(options, shape, channels):
    agent = DQN("Screen-v0", buffer_size=100, learning_starts=10, **options)
    assert agent.example_input_array.shape == (1, *shape)
    assert agent.network.convolutions[0].in_channels == channels
    assert agent(agent.example_input_array).shape == (1, 2)
    small = {"eval_episodes": 2, "num_envs": 2, "batch_size": 8}
    agent = DQN("Screen-v0", buffer_size=100, learning_starts=10, steps_per_epoch=20, **small, **options)
    Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(agent)


def test_frames_are_stacked_as_channels_in_their_order():
    images = torch.arange(2 * 4 * 40 * 40 * 3).view(2, 4, 40, 40, 3).float()
    stacked = as_channels(images)
    assert stacked.shape == (2, 12, 40, 40)
    assert torch.equal(stacked[1, 3 * 2 + 1], images[1, 2, :, :, 1])
    assert torch.equal(as_channels(images[:, 0])[1, 2], images[1, 0, :, :, 2])
    assert torch.equal(as_channels(images[..., 0]), images[..., 0])


def test_actions_of_one_and_of_many_observations():
    agent = DQN("Wages-v0", hidden_sizes=())
    with torch.no_grad():
        agent.network.advantage.bias.copy_(torch.tensor([0.0, 100.0]))
    assert agent.act(np.ones(1, np.float32)) == 6  # Discrete(2, start=5)
    assert agent.act(np.ones((3, 1), np.float32)).tolist() == [6, 6, 6]
    assert agent.predict(np.ones((3, 1), np.float32), deterministic=True)[0].tolist() == [6, 6, 6]
    random = agent.predict(np.ones((200, 1), np.float32))[0]  # epsilon is still 1
    assert set(random.tolist()) == {5, 6}


def test_every_environment_plays_as_many_episodes_as_the_others():
    environments = make_vector_env("CartPole-v1", 8)

    # Pushing one way ends within 11 steps, balancing a little later: the first 16 to end would be the shortest.
    def policy(seen):
        return np.where(np.arange(8) < 4, 0, (seen[:, 2] > 0).astype(int))

    returns, lengths = play_episodes(environments, policy, 18, seed=0)
    assert (returns == lengths).all()
    assert len(returns) == 18
    assert (returns <= 11).sum() == 4 * 2 + 2  # the first two environments play one more


def test_evaluation_is_the_same_for_the_same_seed():
    environments = make_vector_env("CartPole-v1", 3)
    play = partial(play_episodes, environments, lambda seen: (seen[:, 2] > 0).astype(int), 10)
    assert np.array_equal(play(seed=1)[0], play(seed=1)[0])
    assert not np.array_equal(play(seed=1)[0], play(seed=2)[0])


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("CartPole-v1", {}),  # vectorised by itself
        ("Acrobot-v1", {}),
        ("MountainCar-v0", {"frame_stack": 3}),
        ("Screen-v0", {"grayscale": True}),
    ],
)
def test_an_environment_goes_on_from_its_state(env_id, options):
    first, second = (make_vector_env(env_id, 3, **options) for _ in range(2))
    draw = np.random.default_rng(0)
    for number, environments in enumerate((first, second)):
        environments.reset(seed=number)
    for _ in range(30):
        first.step(draw.integers(2, size=3))
    content = io.BytesIO()
    torch.save(get_env_state(first), content)
    content.seek(0)
    set_env_state(second, torch.load(content, weights_only=True))
    for _ in range(300):  # over many an episode's end
        action = draw.integers(2, size=3)
        for one, other in zip(first.step(action)[:4], second.step(action)[:4], strict=True):
            assert np.array_equal(one, other)


class Light(Enum):
    RED, GREEN = 1, 2


def test_what_could_not_be_put_back_is_not_captured():
    board = np.zeros((2, 2))
    assert get_env_state(board) is not None
    for value in (Light.GREEN, [Light.RED], {"board": board, "cells": board.reshape(-1)}, partial(max, 1)):
        assert get_env_state(value) is None


def test_state_that_is_an_object_is_not_captured():
    environments = make_vector_env("Emulator-v0", 2)
    environments.reset(seed=0)
    assert get_env_state(environments) is None


class Kept(Checkpoint):
    """Keeps a checkpoint of an epoch, from the end of its evaluation or, as `last.ckpt` is, from its own end."""

    def __init__(self, epoch, path, hook="on_validation_end"):
        self.epoch, self.path, self.hook = epoch, path, hook

    def keep(self, trainer, hook):
        if (trainer.current_epoch, self.hook) == (self.epoch, hook) and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            self.keep(trainer, "on_train_batch_end")

    def on_validation_end(self, trainer, pl_module):
        self.keep(trainer, "on_validation_end")

    def on_train_epoch_end(self, trainer, pl_module):
        self.keep(trainer, "on_train_epoch_end")


def small_agent(**options):
    small = {"num_envs": 4, "steps_per_epoch": 200, "learning_starts": 100, "buffer_size": 500, "eval_episodes": 2}
    return DQN(
        **{"gradient_steps": 2, "batch_size": 16, "epsilon_steps": 700, "target_update_interval": 3} | small | options,
        lr_scheduler=partial(LinearLR, start_factor=1.0, end_factor=0.1, total_iters=4),
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_steps": 3, "prioritized": True, "double": True, "ema_decay": 0.9, "tau": 0.1},
        {"env_id": "Acrobot-v1"},
    ],
    ids=["plain", "everything", "sync"],
)
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
def test_resumed_is_as_if_it_had_not_stopped(hook, options, tmp_path):
    def train(path=None, callbacks=()):
        seed_everything(3)
        agent = small_agent(**options)
        trainer = Trainer(max_epochs=4, callbacks=[*callbacks], enable_checkpointing=bool(callbacks), **QUIET)
        trainer.fit(agent, ckpt_path=path, weights_only=True)
        np.random.random(), torch.rand(1)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        return torch.load(tmp_path / "end.ckpt", weights_only=True)

    whole = train(callbacks=[Kept(1, tmp_path / "stopped.ckpt", hook)])
    torch.rand(100)  # what another process would not have drawn
    resumed = train(tmp_path / "stopped.ckpt")
    assert whole["global_step"] == resumed["global_step"]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "processes", *COUNTERS):
        same(whole[key], resumed[key], key)


def same(one, other, where):
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, parts in enumerate(zip(one, other, strict=True)):
            same(*parts, f"{where}.{number}")
    else:
        assert one == other, where


def test_resuming_without_the_replay_or_the_environments_says_so(tmp_path, caplog):
    def train(path=None):
        seed_everything(3)
        agent = small_agent(env_id="Emulator-v0", save_replay=False)
        Trainer(max_epochs=3, callbacks=[Kept(1, tmp_path / "stopped.ckpt")], **QUIET).fit(
            agent, ckpt_path=path, weights_only=True
        )
        return agent

    train()
    assert torch.load(tmp_path / "stopped.ckpt", weights_only=True)["processes"][0]["module"]["buffer"] is None
    caplog.clear()
    agent = train(tmp_path / "stopped.ckpt")
    assert "The checkpoint holds no replay" in caplog.text
    assert "The state of Emulator-v0 cannot be saved" in caplog.text
    assert agent.buffer.size > 100


def test_another_environment_than_the_checkpoints_is_refused(tmp_path):
    agent, trainer = small_agent(), Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(agent)
    trainer.save_checkpoint(tmp_path / "cartpole.ckpt")
    with pytest.raises(ValueError, match="the checkpoint's agent plays CartPole-v1, not Acrobot-v1"):
        Trainer(max_epochs=2, **QUIET).fit(small_agent(env_id="Acrobot-v1"), ckpt_path=tmp_path / "cartpole.ckpt")
    loaded = DQN.load_from_checkpoint(tmp_path / "cartpole.ckpt", weights_only=True)
    seen = torch.rand(5, 4)
    assert torch.equal(loaded(seen), agent(seen))


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions(precision):
    agent = small_agent(max_grad_norm=1.0, ema_decay=0.9)
    Trainer(max_epochs=2, precision=precision, enable_checkpointing=False, **QUIET).fit(agent)
    assert agent.network.advantage.weight.dtype == (torch.float64 if precision == "64-true" else torch.float32)
    assert agent.eval_returns[-1][1] > 5


def test_errors_become_priorities():
    agent = small_agent(prioritized=True, steps_per_epoch=8)
    Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(agent)
    assert len(agent.buffer.priority[: agent.buffer.size].unique()) > 10


def test_a_schedule_over_all_training_steps_ends_with_them():
    agent = DQN(
        steps_per_epoch=160,
        learning_starts=8,
        eval_episodes=1,
        lr_scheduler=partial(OneCycleLR, max_lr=0.1, final_div_factor=100),
    )
    Trainer(max_epochs=2, enable_checkpointing=False, **QUIET).fit(agent)
    # It began with 0.1 / 25, and has come down to the end, where PyTorch's takes one step more than it has.
    assert agent.optimizers().param_groups[0]["lr"] < 0.1 / 25 / 10


def test_fsdp_is_refused(monkeypatch):
    agent = DQN()
    agent.trainer = Trainer(**QUIET)
    monkeypatch.setattr(Trainer, "strategy", FSDPStrategy())  # a Trainer takes it on GPUs only
    with pytest.raises(ValueError, match=r"set trainer.strategy to ddp"):
        agent.setup("fit")


PROCESSES = """
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from rl import DQN

class Compared(Callback):
    def on_train_end(self, trainer, agent):
        parameters = torch.cat([parameter.detach().flatten() for parameter in agent.parameters()])
        both = agent.all_gather({"parameters": parameters, "seen": agent.buffer.observation[:50]})
        assert torch.equal(*both["parameters"]), "the parameters differ"
        assert not torch.equal(*both["seen"]), "both play the same episodes"
        assert not torch.equal(parameters, start), "nothing was learnt"
        assert agent.env_steps == 2 * 400, agent.env_steps
        trainer.save_checkpoint("two.ckpt")

if __name__ == "__main__":
    seed_everything(0)
    torch.set_num_threads(1)
    agent = DQN(num_envs=4, steps_per_epoch=400, learning_starts=8, eval_episodes=2, ema_decay=0.5)
    start = torch.cat([parameter.detach().flatten() for parameter in agent.parameters()])
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=2, strategy="ddp", logger=False, callbacks=[Compared()],
        enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(agent)
    states = torch.load("two.ckpt", weights_only=True)["processes"]
    assert len(states) == 2
    assert not torch.equal(*(state["module"]["collector"]["observation"] for state in states))
    open(f"compared {trainer.global_rank}", "w").close()
"""


def test_two_processes_play_their_own_episodes_and_learn_together(tmp_path):
    (tmp_path / "two.py").write_text(PROCESSES)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "two.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.glob("compared *")} == {"compared 0", "compared 1"}


def test_evaluate_policy_of_stable_baselines3():
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation", reason="needs the extra bench")
    seed_everything(0)
    agent = small_agent()
    mean, _ = evaluation.evaluate_policy(agent, gymnasium.make("CartPole-v1"), n_eval_episodes=5)
    assert 5 < mean <= 500


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env_id": "CartPol-v1"}, "there is no environment 'CartPol-v1'; did you mean 'CartPole-v"),
        ({"env_id": "CartPole-v7"}, "there is no environment 'CartPole-v7'; did you mean 'CartPole-v1' or"),
        ({"env_id": "nowhere:CartPole-v1"}, "cannot make nowhere:CartPole-v1: No module named 'nowhere'"),
        ({"env_id": "Pendulum-v1"}, r"actions of Pendulum-v1 are continuous, .* SAC or TD3 takes them"),
        ({"env_id": "DictSeen-v0"}, "observations of DictSeen-v0 are a Dict of several: .* FlattenObservation"),
        ({"env_id": "TupleSeen-v0"}, "observations of TupleSeen-v0 are a Tuple of several: .* FlattenObservation"),
        ({"env_id": "NumberSeen-v0"}, r"are Discrete\(3\): DQN takes a Box of numbers"),
        ({"env_id": "ManyActions-v0"}, r"are MultiDiscrete\(\[2 2\]\): DQN takes one Discrete choice"),
        ({"env_options": {"colour": 3}}, "cannot make CartPole-v1: .*colour"),
        ({"grayscale": True}, "cannot make CartPole-v1: GrayscaleObservation requires an image"),
        ({"buffer_size": 50}, "buffer_size is 50, but batch_size is 64: the buffer must hold as many"),
        ({"buffer_size": 500}, "buffer_size is 500, but learning_starts is 1000"),
        ({"gamma": 1.5}, "gamma is 1.5: it must be at least 0 and at most 1"),
        ({"num_envs": 0}, "num_envs is 0: it must be at least 1"),
    ],
)
def test_what_cannot_be_is_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        DQN(**options)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match=r"LunarLander-v3 needs the extra box2d: pip install -e '.\[box2d\]'"):
        DQN("LunarLander-v3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buffer_size": 70, "learning_starts": 64, "num_envs": 8, "n_steps": 9}, "too small for 9 step"),
        (
            {"env_options": {"breaks": "raise"}},
            "Wages-v0 at step 12: the environment raised OSError: the motor is gone",
        ),
        (
            {"env_options": {"breaks": "nan"}},
            r"Wages-v0 at step 12: environment 0 of 4 returned the observation \[nan\]",
        ),
    ],
)
def test_what_goes_wrong_in_training_is_one_line(options, message):
    agent = small_agent(**{"env_id": "Wages-v0"} | options)
    with pytest.raises(ValueError, match=message):
        Trainer(max_epochs=1, num_sanity_val_steps=0, enable_checkpointing=False, **QUIET).fit(agent)


def test_an_environment_that_breaks_leaves_the_last_checkpoint(tmp_path, capsys, monkeypatch):
    def broken(self, action):
        if self.steps.max() > 40:
            raise RuntimeError("the pole is gone")
        return step(self, action)

    flags = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=4", f"--trainer.default_root_dir={tmp_path}"]
    assert cli.main(["fit", f"--config={CARTPOLE}", *flags]) == 0
    last = tmp_path / "dqn_cartpole" / "version_0" / "checkpoints" / "last.ckpt"
    step = CartPoleVectorEnv.step
    monkeypatch.setattr(CartPoleVectorEnv, "step", broken)
    message = fails(
        capsys, "fit", f"--ckpt_path={last}", "--trainer.max_epochs=50", "--trainer.limit_train_batches=1.0"
    )
    assert "CartPole-v1 at step " in message
    assert "the environment raised RuntimeError: the pole is gone" in message
    monkeypatch.undo()
    assert cli.main(["test", f"--ckpt_path={last}", "--model.test_episodes=2"]) == 0


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.limit_train_batches=5"]
    assert cli.main(["fit", f"--config={CARTPOLE}", "--trainer.max_epochs=2", *short]) == 0
    assert "Best checkpoint (eval/return " in capsys.readouterr().out
    run = tmp_path / "logs" / "dqn_cartpole" / "version_0"
    assert cli.main(["test", f"--config={CARTPOLE}", "--ckpt_path=last", "--model.test_episodes=7"]) == 0
    printed = capsys.readouterr().out
    for name in ("test/return", "test/return_std", "test/return_min", "test/return_max"):
        assert f" {name} " in printed
    predict = ["predict", f"--config={CARTPOLE}", "--ckpt_path=last", "--output=episodes.csv"]
    assert cli.main([*predict, "--model.test_episodes=3"]) == 0
    with open("episodes.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["episode", "seed", "return", "length", "terminated"]
    assert [row["episode"] for row in rows] == ["0", "1", "2"]
    assert len({row["seed"] for row in rows}) == 3
    assert all(float(row["return"]) == float(row["length"]) for row in rows)
    assert cli.main(["fit", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", "--trainer.max_epochs=3"]) == 0
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    curves = EventAccumulator(str(run)).Reload()
    assert {"episode/return", "episode/length", "eval/return", "train/loss", "train/q_mean", "train/epsilon"} <= set(
        curves.Tags()["scalars"]
    )
    for name in ("train/lr", "throughput/env_steps_per_second", "throughput/gradient_steps_per_second", "env_steps"):
        assert name in curves.Tags()["scalars"]
    assert "returns" in curves.Tags()["images"]
    points = curves.Scalars("eval/return")
    assert [(point.step, pytest.approx(point.value)) for point in points] == content["eval_returns"]
    assert curves.Scalars("train/epsilon")[-1].step == content["env_steps"]
    message = fails(capsys, "fit", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", "--model.env_id=Acrobot-v1")
    assert "model.env_id: CartPole-v1 -> Acrobot-v1" in message
    message = fails(capsys, "fit", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", "--model.hidden_sizes=[64]")
    assert "model.hidden_sizes: " in message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--model=DQN", "--model.env_id=CartPol-v1"], "error: there is no environment 'CartPol-v1'; did you"),
        (["fit", "--model=DQN", "--model.env_id=Pendulum-v1"], "error: the actions of Pendulum-v1 are continuous"),
        (["fit", "--model=DQN", "--model.duelling=true"], "'duelling'; did you mean 'dueling'?"),
        (["fit", "--model=DQN", "--data=MNISTDataModule"], "leave out --data MNISTDataModule"),
        (["fit", "--model=DQN", "--model.optimizer=LBFGS"], "error: LBFGS evaluates the loss several times a step"),
        (["fit", "--model=DQN", "--model.buffer_size=10"], "error: buffer_size is 10, but batch_size is 64"),
    ],
)
def test_mistakes_are_one_line(args, message, tmp_path, capsys):
    assert message in fails(capsys, *args, f"--trainer.default_root_dir={tmp_path}")


def test_a_video_of_an_agent_only(trained, tmp_path, capsys):
    last = trained / "version_0" / "checkpoints" / "last.ckpt"
    message = fails(capsys, "predict", f"--ckpt_path={last}", f"--video={tmp_path}")
    assert "--video: Net plays no episodes" in message


def test_an_environment_of_ones_own_from_a_module(tmp_path, capsys):
    own = ["--model=DQN", "--model.env_id=worlds:Wages-v0", "--model.eval_episodes=2", "--model.test_episodes=2"]
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", f"--trainer.default_root_dir={tmp_path}"]
    assert cli.main(["fit", *own, *short, "--name=own"]) == 0
    last = f"--ckpt_path={tmp_path / 'own' / 'version_0' / 'checkpoints' / 'last.ckpt'}"
    broken = ["--modules=worlds", "--model.env_options={breaks: raise}"]
    output = f"--output={tmp_path / 'episodes.csv'}"
    assert "raised OSError: the motor is gone" in fails(capsys, "predict", last, output, *broken)
    assert "raised OSError: the motor is gone" in fails(capsys, "test", last, *broken)
    assert not list(tmp_path.glob("episodes*"))


def test_films(tmp_path, capsys):
    pytest.importorskip("pygame", reason="needs the extra video")
    pytest.importorskip("moviepy", reason="needs the extra video")
    flags = ["--trainer.limit_train_batches=2", f"--trainer.default_root_dir={tmp_path}", "--model.eval_video=true"]
    assert cli.main(["fit", f"--config={CARTPOLE}", "--trainer.max_epochs=1", *flags]) == 0
    run = tmp_path / "dqn_cartpole" / "version_0"
    shown = EventAccumulator(str(run)).Reload().Images("eval/episode")
    film = Image.open(io.BytesIO(shown[0].encoded_image_string))
    assert (film.format, film.size, shown[0].width) == ("GIF", (600, 400), 600)
    assert film.n_frames > 5
    films = ["--model.test_episodes=2", f"--video={tmp_path / 'films'}", f"--output={tmp_path / 'episodes.csv'}"]
    assert cli.main(["predict", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", *films]) == 0
    assert len(list((tmp_path / "films").glob("*.mp4"))) == 2


@pytest.mark.slow
def test_cartpole_is_solved_and_stays_solved(tmp_path):
    for seed in range(3):
        flags = [f"--seed_everything={100 + seed}", f"--trainer.default_root_dir={tmp_path}"]
        command = cli.CLI(["fit", f"--config={CARTPOLE}", *flags])
        assert command.trainer.test(command.model)[0]["test/return"] >= 475
