"""What actor-critics of continuous actions share."""

import math
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
import worlds
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from lightning import Trainer, seed_everything
from small import QUIET, check_resume, small_actor_critic
from torch.nn import functional as F
from torch.optim.lr_scheduler import LinearLR

from rl import DDPG, SAC
from rl.actor_critic import ActionScale, BatchedLinear

KINDS = pytest.mark.parametrize("kind", [DDPG, SAC])
TD3 = {"twin": True, "policy_delay": 2, "target_noise": 0.2}


@pytest.fixture(autouse=True)
def seeded():
    seed_everything(0)


def test_batched_layers_are_separate_layers():
    layer, x = BatchedLinear(3, 5, 4), torch.randn(3, 7, 5)
    expected = [F.linear(x[k], layer.weight[k].T, layer.bias[k, 0]) for k in range(3)]
    torch.testing.assert_close(layer(x), torch.stack(expected))
    assert layer.weight.abs().max().item() == pytest.approx(1 / 5**0.5, rel=0.1)


def test_critics_are_independent():
    seed_everything(0)
    critics = DDPG("Goals-v0", twin=True).critics
    values = critics(torch.eye(2), torch.zeros(2, 1))
    assert values.shape == (2, 2)
    assert not torch.allclose(*values)
    values[0].sum().backward()
    assert all(weight.grad[0].any() and not weight.grad[1].any() for weight in critics.parameters())


def test_actions_have_the_bounds_and_shape_of_their_box():
    low, high = np.array([[-1, 0.1], [2, -7]], np.float32), np.array([[3, 0.3], [2.5, 7]], np.float32)
    scale = ActionScale("Own-v0", spaces.Box(low, high))
    actions = scale(torch.stack([-torch.ones(4), torch.zeros(4), torch.ones(4)])).numpy()
    assert np.array_equal(actions[0], low)
    np.testing.assert_allclose(actions[1], (low + high) / 2, rtol=1e-6)
    assert np.array_equal(actions[2], high)
    assert ActionScale("Own-v0", spaces.Box(-1, 1, ()))(torch.zeros(3, 1)).shape == (3,)


@KINDS
@pytest.mark.parametrize(
    ("env_id", "wrappers", "message"),
    [
        ("Unbounded-v0", None, "actions of Unbounded-v0 have infinite bounds, .* wrapper of your own, whose action_sp"),
        ("Pendulum-v1", ["ClipAction"], "actions of Pendulum-v1 have infinite bounds, .*: leave out ClipAction, if"),
        ("Bytes-v0", None, "actions of Bytes-v0 are integers, .* Box of float32"),
        ("CartPole-v1", None, r"are Discrete\(2\): \w+ takes a Box of continuous numbers. DQN or PPO takes them"),
        ("ManyActions-v0", None, r"are MultiDiscrete\(\[2 2\]\): \w+ takes a Box of continuous numbers"),
    ],
)
def test_other_actions_are_refused_in_one_line(kind, env_id, wrappers, message):
    with pytest.raises(ValueError, match=message) as caught:
        kind(env_id, wrappers=wrappers)
    assert "\n" not in str(caught.value)


@KINDS
def test_buffer_too_small_is_one_line(kind):
    with pytest.raises(ValueError, match="buffer_size is 50: batch_size and learning_starts need 1000 or more"):
        kind(buffer_size=50)


@KINDS
@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (math.nan, "Paid-v0 at step 0: .* returned the reward nan"),
        (1e30, r"train/\w+ is (inf|nan) at environment step \d+: lower model.optimizer.lr"),
    ],
)
def test_rewards_that_are_not_finite_are_one_line(kind, reward, message, monkeypatch):
    class Paid(worlds.Goals):
        def step(self, action):
            seen, _, *rest = super().step(action)
            return seen, reward, *rest

    monkeypatch.setitem(gymnasium.registry, "Paid-v0", EnvSpec("Paid-v0", entry_point=Paid))
    trainer = Trainer(max_epochs=1, num_sanity_val_steps=0, enable_checkpointing=False, **QUIET)
    with pytest.raises(ValueError, match=message) as caught:
        trainer.fit(small_actor_critic(kind, env_id="Paid-v0"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(DDPG, {"noise_reversion": 0.15}), (DDPG, TD3), (SAC, {"env_id": "VectorPendulum-v1"})],
    ids=["DDPG", "TD3", "SAC"],
)
def test_resume_is_exact(kind, options, tmp_path):
    schedule = partial(LinearLR, start_factor=1.0, end_factor=0.1, total_iters=4)
    check_resume(lambda: small_actor_critic(kind, lr_scheduler=schedule, **options), tmp_path)


@KINDS
def test_images_and_stacked_frames_are_seen(kind, monkeypatch):
    class Seen(worlds.Goals):
        observation_space = spaces.Box(0, 255, (40, 36, 3), np.uint8)

        def _see(self):
            return np.full((40, 36, 3), 200 * self.state, np.uint8)

    monkeypatch.setitem(gymnasium.registry, "Seen-v0", EnvSpec("Seen-v0", entry_point=Seen))
    agent = small_actor_critic(
        kind, env_id="Seen-v0", grayscale=True, frame_stack=2, buffer_size=100, steps_per_epoch=8
    )
    Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(agent)
    assert agent.act(np.zeros((3, 2, 40, 36), np.uint8)).shape == (3, 1)
    assert agent.buffer.observation.dtype == torch.uint8


@KINDS
def test_evaluate_policy_of_stable_baselines3(kind):
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation", reason="needs the extra bench")
    agent, env = kind("VectorPendulum-v1"), gymnasium.make("Pendulum-v1")
    for deterministic in (True, False):
        mean, _ = evaluation.evaluate_policy(agent, env, 1, deterministic)
        assert -2000 < mean < -100  # it has learned nothing


@KINDS
def test_precisions(kind):
    agent = small_actor_critic(kind, max_grad_norm=1.0)
    Trainer(max_epochs=1, precision="64-true", enable_checkpointing=False, **QUIET).fit(agent)
    assert agent.critics.output.weight.dtype == torch.float64


@KINDS
def test_curves(kind):
    trainer = Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(small_actor_critic(kind))
    shown = {"policy_loss", "value_loss", "q_mean", "lr"} | ({"entropy", "temperature"} if kind is SAC else set())
    assert {f"train/{name}" for name in shown} | {"eval/return", "episode/return"} <= set(trainer.callback_metrics)


def test_checkpoint_of_another_algorithm_is_refused(tmp_path):
    trainer = Trainer(max_epochs=1, limit_train_batches=1, enable_checkpointing=False, **QUIET)
    trainer.fit(small_actor_critic(DDPG))
    trainer.save_checkpoint(tmp_path / "ddpg.ckpt")
    message = "the checkpoint is of rl.DDPG, not of SAC: load it with its own class"
    with pytest.raises(ValueError, match=message):
        trainer.fit(small_actor_critic(SAC), ckpt_path=tmp_path / "ddpg.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=message):
        SAC.load_from_checkpoint(tmp_path / "ddpg.ckpt")
