"""DDPG and TD3, against values worked out by hand and a small world whose values are known."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import worlds  # noqa: F401  registers the environments
from conftest import ROOT
from lightning import Trainer, seed_everything
from small import QUIET, learn_goals, small_actor_critic

from lit_models.cli import main as cli
from rl import DDPG
from rl.buffers import Transitions

TD3 = {"twin": True, "policy_delay": 2, "target_noise": 0.2}
ADAM = partial(torch.optim.Adam, lr=0.01)


@pytest.fixture(autouse=True)
def seeded():
    seed_everything(0)


def stack(rewards, terminated, *, discount=0.9):
    """A stack of one minibatch of the states of Goals, all their own next ones, with action 0."""
    count = len(rewards)
    seen, ones = torch.eye(2)[torch.arange(count) % 2][None], torch.ones(1, count)
    given = (torch.tensor([rewards]), seen, torch.tensor([terminated]), discount * ones, ones)
    return Transitions(seen, torch.zeros(1, count, 1), *given, torch.arange(count)[None])


def table(critics, states, slopes):
    """Makes critics without hidden layers say `states[k][s] + slopes[k] * action`."""
    with torch.no_grad():
        for number, (values, slope) in enumerate(zip(states, slopes, strict=True)):
            critics.output.weight[number] = torch.tensor([*values, slope])[:, None]
        critics.output.bias.zero_()


def constant(actor, values):
    """Makes an actor without hidden layers give the actions `values`, of the two states, in -1..1."""
    with torch.no_grad():
        actor.output.weight.copy_(torch.tensor([values]).atanh())
        actor.output.bias.zero_()


def test_td_target_by_hand():
    agent = DDPG("Goals-v0", hidden_sizes=())
    constant(agent.target_actor, [0.5, -0.5])
    constant(agent.actor, [0.9, 0.9])
    table(agent.target_critics, [[10.0, 20.0]], [4.0])
    table(agent.critics, [[1000.0, 1000.0]], [1000.0])
    target = agent.td_target(stack([1.0, 2.0, 3.0], [False, False, True]))
    assert target.tolist() == [pytest.approx([1 + 0.9 * (10 + 2), 2 + 0.9 * (20 - 2), 3])]


def test_twin_td_target_by_hand():
    agent = DDPG("Goals-v0", hidden_sizes=(), twin=True)
    constant(agent.target_actor, [0.5, -0.5])
    table(agent.target_critics, [[10.0, 20.0], [11.0, 15.0]], [4.0, 0.0])  # 12 and 18, 11 and 15
    target = agent.td_target(stack([1.0, 2.0, 3.0], [False, False, True], discount=0.5))
    assert target.tolist() == [pytest.approx([1 + 0.5 * 11, 2 + 0.5 * 15, 3])]


def test_smoothed_td_target_by_hand(monkeypatch):
    agent = DDPG("Goals-v0", hidden_sizes=(), target_noise=0.2, noise_clip=0.3)
    constant(agent.target_actor, [0.5, 0.9])
    table(agent.target_critics, [[0.0, 0.0]], [10.0])
    drawn = torch.tensor([[1.0], [1.0], [-9.0], [9.0]])  # standard deviations
    monkeypatch.setattr(torch, "randn_like", lambda like: drawn)
    target = agent.td_target(stack([0.0] * 4, [False] * 4, discount=1.0))
    # 0.5 + 0.2; 0.9 + 0.2, which is beyond the bound; 0.5 - 0.3, the clipped noise; 0.9 + 0.3, again
    assert target.tolist() == [pytest.approx([7, 10, 2, 10])]


def fitted(**options):
    """An agent in its Trainer, before its first step."""
    seed_everything(0)
    sgd = {"hidden_sizes": (), "gradient_steps": 1, "optimizer": partial(torch.optim.SGD, lr=0.1)}
    agent = DDPG("Goals-v0", **sgd | {"num_envs": 2, "batch_size": 4, "learning_starts": 4} | options)
    Trainer(max_epochs=1, limit_train_batches=0, limit_val_batches=0, **QUIET).fit(agent)
    agent.means.reset("train")
    return agent


def test_losses_and_gradients_by_hand():
    agent = fitted()
    constant(agent.actor, [0.0, 0.0])
    table(agent.critics, [[1.0, 2.0]], [3.0])
    agent.training_step(stack([2.0, 6.0], [True, True]), 0)
    totals = {name: total.item() for name, total in agent.means.totals["train"].items()}
    assert totals == pytest.approx({"value_loss": (1 + 16) / 2, "policy_loss": -1.5, "q_mean": 1.5})
    # The critics move by their errors of -1 and -4 alone; the actor by dQ/da = 3 times tanh's slope of 1.
    assert agent.critics.output.weight.flatten().tolist() == pytest.approx([1 + 0.1 * 1, 2 + 0.1 * 4, 3])
    assert agent.actor.output.weight.flatten().tolist() == pytest.approx([0.1 * 3 / 2, 0.1 * 3 / 2])
    for target, online in ((agent.target_actor, agent.actor), (agent.target_critics, agent.critics)):
        assert not torch.equal(target.output.weight, online.output.weight)
        assert not any(weight.requires_grad for weight in target.parameters())


def test_targets_follow():
    agent = fitted(tau=0.25)
    pairs = [(agent.target_actor, agent.actor), (agent.target_critics, agent.critics)]
    old = [target.output.weight.clone() for target, _ in pairs]
    agent.training_step(stack([2.0, 6.0], [True, True]), 0)
    for (target, online), before in zip(pairs, old, strict=True):
        torch.testing.assert_close(target.output.weight, before.lerp(online.output.weight, 0.25))


def test_policy_is_delayed():
    agent = fitted(twin=True, policy_delay=2, gradient_steps=4, optimizer=ADAM)
    moved = []

    def watch(*_):
        now = [part.output.weight.detach().clone() for part in (agent.actor, agent.critics)]
        moved.append([not torch.equal(*pair) for pair in zip(now, last, strict=True)])
        last[:] = now

    last = [part.output.weight.detach().clone() for part in (agent.actor, agent.critics)]
    agent.optimizers()._optimizer.register_step_post_hook(watch)
    batch = stack([2.0, 6.0], [True, True])
    agent.training_step(Transitions(*(part.expand(4, *part.shape[1:]) for part in batch)), 0)
    assert moved == [[False, True], [True, True]] * 2


@pytest.mark.parametrize(
    ("options", "then"),
    [({}, 1.0), (TD3, 1 - (2 * 0.2) ** 2)],  # smoothing costs the noise's square
    ids=["DDPG", "TD3"],
)
def test_learns_two_states(options, then):
    agent = learn_goals(DDPG, **options)
    states = torch.eye(2)
    assert agent(states).flatten().tolist() == pytest.approx([0, 2], abs=0.25)
    best = torch.tensor([[-0.5], [0.5]])  # 0 and 2 in -1..3
    for values in (*agent.critics(states, best), agent.value(states)):
        assert values.tolist() == pytest.approx([1 + 0.9 * then, 1], abs=0.15)


def test_bootstrapping_through_the_end_is_wrong():
    class Wrong(DDPG):
        def td_target(self, batch):
            return super().td_target(batch._replace(terminated=torch.zeros_like(batch.terminated)))

    assert learn_goals(Wrong).critics(torch.eye(2), torch.tensor([[-0.5], [0.5]])).min() > 2


def test_noise_is_gaussian_or_ornstein_uhlenbeck():
    for reversion, correlation in ((1.0, 0.0), (0.15, 0.85)):
        agent = DDPG(num_envs=500, learning_starts=1, noise_reversion=reversion, noise_std=0.02)
        agent.make_buffer(0)
        agent.rng, agent.env_steps = np.random.default_rng(0), 1
        agent.collector = SimpleNamespace(done=torch.zeros(500, dtype=torch.bool))
        torch.nn.init.zeros_(agent.actor.output.weight)
        torch.nn.init.zeros_(agent.actor.output.bias)
        with torch.no_grad():
            actions = torch.stack([agent.behave(torch.zeros(500, 3))[1][:, 0] for _ in range(60)])[30:]  # (30, 500)
        assert actions.std() == pytest.approx(0.02 / (1 - correlation**2) ** 0.5, rel=0.05)
        assert torch.corrcoef(torch.stack([actions[:-1].flatten(), actions[1:].flatten()]))[0, 1] == pytest.approx(
            correlation, abs=0.03
        )
        agent.collector.done[:250] = True  # in these an episode begins
        with torch.no_grad():
            begun, going = agent.behave(torch.zeros(500, 3))[1].split(250)
        assert begun.std() == pytest.approx(0.02, rel=0.15)
        assert going.std() == pytest.approx(0.02 / (1 - correlation**2) ** 0.5, rel=0.15)


@torch.no_grad()
def test_actions_are_random_before_learning_starts():
    agent = fitted(num_envs=500, learning_starts=1000, buffer_size=5000, noise_std=0.0)
    action, stored = agent.behave(torch.eye(2)[torch.zeros(500, dtype=torch.int64)])
    assert np.ptp(action) > 3.9  # of -1..3
    np.testing.assert_allclose(action, 1 + 2 * stored.numpy(), atol=1e-6)
    agent.env_steps = 1000
    action, _ = agent.behave(torch.eye(2)[torch.zeros(500, dtype=torch.int64)])
    np.testing.assert_allclose(action, agent.act(np.eye(2, dtype=np.float32)[[0]]).repeat(500, axis=0), atol=1e-6)


def test_predict_explores():
    agent = DDPG("Goals-v0", noise_std=0.1)
    seen = np.zeros((2000, 2), np.float32)
    np.random.seed(0)
    greedy, random = agent.predict(seen, deterministic=True)[0], agent.predict(seen)[0]
    assert (random - greedy).std() == pytest.approx(0.1 * 2, rel=0.1)
    assert random.dtype == np.float32


@pytest.mark.slow
def test_policy_is_delayed_in_several_processes():
    agent = small_actor_critic(DDPG, env_id="VectorPendulum-v1", **TD3)
    before = agent.actor.output.weight.detach().clone()
    Trainer(max_epochs=1, strategy="ddp_spawn", devices=2, enable_checkpointing=False, **QUIET).fit(agent)
    assert not torch.equal(agent.actor.output.weight, before)


def test_delay_divides_gradient_steps():
    with pytest.raises(ValueError, match="gradient_steps is 3: policy_delay, 2, must divide it"):
        DDPG(policy_delay=2, gradient_steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpg_pendulum", "td3_pendulum"])
def test_pendulum_is_swung_up(name, tmp_path):
    config = f"--config={ROOT / 'configs' / name}.yaml"
    command = cli.CLI(["fit", config, "--seed_everything=100", f"--trainer.default_root_dir={tmp_path}"])
    assert command.trainer.test(command.model)[0]["test/return"] >= -200
