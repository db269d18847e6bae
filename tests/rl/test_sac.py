"""SAC, against torch's distributions, values worked out by hand and a small world whose values are known."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import worlds  # noqa: F401  registers the environments
from conftest import ROOT
from lightning import Trainer, seed_everything
from small import QUIET, learn_goals, small_actor_critic
from test_ddpg import stack, table
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from lit_models.cli import main as cli
from rl import SAC


@pytest.fixture(autouse=True)
def seeded():
    seed_everything(0)


def policy(agent, mean, std):
    """Makes an actor without hidden layers, of a single action number, Gaussian with this mean and std of u."""
    with torch.no_grad():
        agent.actor.output.weight.zero_()
        agent.actor.output.bias.copy_(torch.tensor([mean, math.log(std)]))


def test_log_probability_is_that_of_torch():
    torch.manual_seed(0)
    agent = SAC("Pendulum-v1", wrappers=["worlds.TwoTorques"]).double()
    seen = 3 * torch.randn(1000, 3, dtype=torch.float64)
    action, log_pi = agent.sample(seen)
    kept = action.abs().amax(dim=1) < 0.999  # there it finds u again from its tanh
    assert kept.sum() > 900
    action, log_pi = action[kept], log_pi[kept]
    mean, log_std = agent.actor(seen[kept]).chunk(2, dim=1)
    normal = Independent(Normal(mean, log_std.exp()), 1)
    expected = TransformedDistribution(normal, TanhTransform()).log_prob(action)
    assert action.shape[1] == 2
    torch.testing.assert_close(log_pi, expected)


def test_log_probability_is_finite_where_tanh_rounds_to_one():
    agent = SAC("Goals-v0", hidden_sizes=())
    policy(agent, 30.0, 1.0)
    action, log_pi = agent.sample(torch.eye(2))
    assert action.tolist() == [[1.0], [1.0]]
    assert log_pi.isfinite().all()
    assert (log_pi > 40).all()  # about 2 * 30, since the density is piled up at the bound


def test_density_sums_to_one():
    agent = SAC("Goals-v0", hidden_sizes=())
    policy(agent, 0.4, 0.7)
    with torch.no_grad():
        _, log_pi = agent.sample(torch.zeros(200_000, 2))
    assert (-log_pi).exp().mean() == pytest.approx(2, abs=0.03)  # E[1 / density] is the length of -1..1


def test_td_target_by_hand(monkeypatch):
    agent = SAC("Goals-v0", hidden_sizes=(), temperature=0.5)
    table(agent.target_critics, [[10.0, 20.0], [11.0, 15.0]], [4.0, 0.0])
    table(agent.critics, [[1000.0, 1000.0]] * 2, [1000.0] * 2)
    sampled = torch.tensor([[0.5], [-0.5], [0.0]]), torch.tensor([-1.0, 2.0, 3.0])
    monkeypatch.setattr(agent, "sample", lambda observation: sampled)
    target = agent.td_target(stack([1.0, 2.0, 3.0], [False, False, True]))
    assert target.tolist() == [pytest.approx([1 + 0.9 * (11 + 0.5), 2 + 0.9 * (15 - 1), 3])]


def fitted(**options):
    """An agent in its Trainer, before its first step."""
    seed_everything(0)
    sgd = {"hidden_sizes": (), "gradient_steps": 1, "optimizer": partial(torch.optim.SGD, lr=0.1)}
    agent = small_actor_critic(SAC, **sgd | options)
    Trainer(max_epochs=1, limit_train_batches=0, limit_val_batches=0, **QUIET).fit(agent)
    agent.means.reset("train")
    return agent


def test_losses_and_gradients_by_hand(monkeypatch):
    agent = fitted(temperature=0.5, target_entropy=-3.0)
    table(agent.critics, [[1.0, 2.0], [-0.5, 3.0]], [3.0, 5.0])
    bias = agent.actor.output.bias
    with torch.no_grad():
        bias.copy_(torch.tensor([0.5, 4.0]))
    # The actor's first output is the action, the second the log probability.
    monkeypatch.setattr(agent, "sample", lambda seen: (bias[:1].expand(len(seen), 1), bias[1].expand(len(seen))))
    monkeypatch.setattr(agent, "td_target", lambda batch: batch.reward)
    agent.training_step(stack([2.0, 6.0], [True, True]), 0)
    totals = {name: total.item() for name, total in agent.means.totals["train"].items()}
    # Lower values of the action 0.5: 2 of the second critic in state 0, 3.5 of the first in state 1.
    expected = {"value_loss": (1 + 16) / 2 + (2.5**2 + 9) / 2, "policy_loss": 0.5 * 4 - (2 + 3.5) / 2, "q_mean": 1.375}
    assert totals == pytest.approx(expected | {"entropy": -4.0, "temperature": 0.5})
    # By the action the policy's loss has the slope -(5 + 3) / 2, by the log probability alpha.
    assert bias.tolist() == pytest.approx([0.5 + 0.1 * 4, 4 - 0.1 * 0.5])
    # By log alpha that of the temperature has -alpha (log pi + target entropy).
    assert agent.log_alpha.item() == pytest.approx(math.log(0.5) + 0.1 * 0.5 * (4 - 3))
    weight = agent.critics.output.weight[..., 0].tolist()
    assert weight == [pytest.approx([1 + 0.1, 2 + 0.4, 3]), pytest.approx([-0.5 + 0.25, 3 + 0.3, 5])]


@pytest.mark.parametrize(("std", "direction"), [(0.01, 1), (1.0, -1)])
def test_temperature_moves_towards_the_target_entropy(std, direction):
    agent = fitted(temperature=0.2)  # the target is an entropy of -1
    policy(agent, 0.0, std)
    agent.training_step(stack([2.0, 6.0], [True, True]), 0)
    assert direction * (agent.log_alpha.exp().item() - 0.2) > 0


def test_temperature_may_stay():
    agent = fitted(temperature=0.2, learn_temperature=False)
    agent.training_step(stack([2.0, 6.0], [True, True]), 0)
    assert agent.log_alpha.exp().item() == pytest.approx(0.2)
    with pytest.raises(ValueError, match="target_entropy is of a temperature that is learned: set learn_temperature"):
        SAC(learn_temperature=False, target_entropy=-2.0)


@pytest.mark.parametrize("temperature", [0.01, 0.4])
def test_learns_two_states_and_their_soft_values(temperature):
    agent = learn_goals(SAC, temperature=temperature, learn_temperature=False)
    states, best = torch.eye(2), torch.tensor([[-0.5], [0.5]])  # 0 and 2 in -1..3
    assert agent(states).flatten().tolist() == pytest.approx([0, 2], abs=0.3)
    # Of all policies, the soft value is greatest where they are exp(reward / alpha): alpha times its integral's log.
    action = torch.linspace(-1, 1, 10_001, dtype=torch.float64)
    soft = temperature * torch.log(2 * ((1 - (2 * action - 1) ** 2) / temperature).exp().mean()).item()
    for values in (*agent.critics(states, best), agent.value(states)):
        assert values.tolist() == pytest.approx([1 + 0.9 * soft, 1], abs=0.25)


def test_entropy_comes_to_its_target():
    agent = learn_goals(SAC, temperature=0.5, target_entropy=-0.5)
    with torch.no_grad():
        _, log_pi = agent.sample(torch.eye(2).repeat(2000, 1))
    assert -log_pi.mean() == pytest.approx(-0.5, abs=0.4)


def test_predict_samples():
    agent = SAC("Goals-v0", hidden_sizes=())
    policy(agent, 0.0, 0.1)
    seen = np.zeros((5000, 2), np.float32)
    torch.manual_seed(0)
    assert (agent.predict(seen, deterministic=True)[0] == 1).all()
    random = agent.predict(seen)[0]
    assert random.dtype == np.float32
    assert random.std() == pytest.approx(0.1 * 2, rel=0.1)


@pytest.mark.slow
def test_pendulum_is_swung_up(tmp_path):
    config = f"--config={ROOT / 'configs' / 'sac_pendulum.yaml'}"
    command = cli.CLI(["fit", config, "--seed_everything=100", f"--trainer.default_root_dir={tmp_path}"])
    assert command.trainer.test(command.model)[0]["test/return"] >= -200
