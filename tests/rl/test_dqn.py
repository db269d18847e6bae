"""DQN, against values worked out by hand and small worlds whose values are known."""

from functools import partial

import pytest
import torch
import worlds  # noqa: F401  registers the environments
from conftest import ROOT
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small import QUIET, small_agent

from lit_models.cli import main as cli
from rl import DQN
from rl.buffers import Transitions

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


def test_default_network():
    agent = DQN()
    assert sum(parameter.numel() for parameter in agent.parameters() if parameter.requires_grad) == 17_410
    first, second = agent.network.hidden
    seen = torch.randn(3, 4)
    expected = agent.network.advantage(second(first(seen).relu()).relu())
    assert torch.equal(agent(seen), expected)


def test_td_target_by_hand():
    agent = DQN(hidden_sizes=())
    table(agent.network, [[1.0, 2.0], [4.0, 3.0], [0.0, 0.0], [0.0, 0.0]])
    table(agent.target, [[10.0, 20.0], [30.0, 40.0], [50.0, 60.0], [0.0, 0.0]])
    batch = stack([1.0, 2.0, 3.0], [False, False, True])
    assert agent.td_target(batch).tolist() == [pytest.approx([1 + 0.9 * 20, 2 + 0.9 * 40, 3])]


def test_double_td_target_by_hand():
    agent = DQN(hidden_sizes=(), double=True)
    table(agent.network, [[1.0, 2.0], [4.0, 3.0], [0.0, 0.0], [0.0, 0.0]])
    table(agent.target, [[10.0, 20.0], [30.0, 40.0], [50.0, 60.0], [0.0, 0.0]])
    batch = stack([1.0, 2.0, 3.0], [False, False, True], discount=0.5)
    assert agent.td_target(batch).tolist() == [pytest.approx([1 + 0.5 * 20, 2 + 0.5 * 30, 3])]


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


def test_gradient_norm_is_clipped():
    seed_everything(0)
    agent = DQN(
        hidden_sizes=(), gradient_steps=1, loss="mse", max_grad_norm=0.1, optimizer=partial(torch.optim.SGD, lr=1.0)
    )
    Trainer(max_epochs=1, limit_train_batches=0, limit_val_batches=0, **QUIET).fit(agent)
    before = [parameter.detach().clone() for parameter in agent.network.parameters()]
    agent.training_step(stack([400.0, 250.0], [True, True]), 0)
    moved = [new - old for new, old in zip(agent.network.parameters(), before, strict=True)]
    assert torch.cat([part.flatten() for part in moved]).norm().item() == pytest.approx(0.1, rel=1e-3)


def test_target_update():
    for tau in (1.0, 0.25):
        seed_everything(0)
        agent = DQN(hidden_sizes=(), gradient_steps=1, tau=tau, target_update_interval=2)
        Trainer(max_epochs=1, limit_train_batches=0, limit_val_batches=0, **QUIET).fit(agent)
        old = agent.target.advantage.weight.clone()
        agent.training_step(stack([4.0, 2.0], [True, True]), 0)
        assert torch.equal(agent.target.advantage.weight, old)
        agent.training_step(stack([4.0, 2.0], [True, True]), 1)
        torch.testing.assert_close(agent.target.advantage.weight, old.lerp(agent.network.advantage.weight, tau))


def test_ema_is_the_greedy_policy():
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


def test_epsilon_schedule():
    agent = DQN(epsilon_end=0.1, epsilon_steps=1000)
    shares = []
    for agent.env_steps in (0, 500, 1000, 5000):
        shares.append(agent.epsilon)
    assert shares == pytest.approx([1, 0.55, 0.1, 0.1])


@pytest.mark.parametrize(
    "options", [{}, {"double": True, "dueling": True, "prioritized": True}, {"tau": 0.05, "target_update_interval": 1}]
)
def test_learns_two_states(options):
    agent = learn(4, env_id="TwoStates-v0", gamma=0.9, **{"target_update_interval": 5} | options)
    values = agent(torch.eye(2))
    # Of state 1: 2, or 0.9 times state 0's; of state 0: 0.9 times 2, or 1.
    torch.testing.assert_close(values, torch.tensor([[1.8, 1.0], [2.0, 0.9 * 1.8]]), atol=0.05, rtol=0)
    torch.testing.assert_close(agent.value(torch.eye(2)), torch.tensor([1.8, 2.0]), atol=0.05, rtol=0)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_truncation_bootstraps(n_steps):
    options = {"env_id": "Wages-v0", "gamma": 0.9, "n_steps": n_steps, "tau": 0.2, "target_update_interval": 1}
    broken_off = learn(4, **options)(torch.ones(1, 1))
    torch.testing.assert_close(broken_off, torch.full((1, 2), 10.0), atol=0.3, rtol=0)  # 1 / (1 - 0.9)
    ended = learn(4, env_options={"terminates": True}, **options)(torch.ones(1, 1))
    assert ended.max() < 6  # the wrong value, were a break taken for an end


def test_learns_from_images():
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
def test_grayscale_and_frame_stack(options, shape, channels):
    agent = DQN("Screen-v0", buffer_size=100, learning_starts=10, **options)
    assert agent.example_input_array.shape == (1, *shape)
    assert agent.network.convolutions[0].in_channels == channels
    assert agent(agent.example_input_array).shape == (1, 2)
    small = {"eval_episodes": 2, "num_envs": 2, "batch_size": 8}
    agent = DQN("Screen-v0", buffer_size=100, learning_starts=10, steps_per_epoch=20, **small, **options)
    Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(agent)


class Betas(Callback):
    """Records the exponent that each batch was sampled with; stops after a number of batches, if given."""

    def __init__(self, stop_after=None):
        self.betas, self.stop_after = [], stop_after

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.betas.append(pl_module.buffer.beta)
        trainer.should_stop = len(self.betas) == self.stop_after


@pytest.mark.parametrize(
    ("limits", "batches"), [({"max_epochs": 2}, 100), ({"max_steps": 60}, 30), ({"max_epochs": 2, "max_steps": 40}, 20)]
)
def test_beta_is_annealed_to_one(limits, batches):
    agent, seen = small_agent(prioritized=True, priority_beta=0.2), Betas()  # 50 batches of 2 steps per epoch
    Trainer(**limits, callbacks=[seen], enable_checkpointing=False, **QUIET).fit(agent)
    assert seen.betas == pytest.approx([0.2 + 0.8 * batch / batches for batch in range(batches)])
    assert agent.beta == 1


def test_beta_is_logged():
    agent, trainer = small_agent(prioritized=True), Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(agent)
    assert trainer.callback_metrics["train/beta"] == 1


def test_beta_is_constant_in_endless_training():
    agent, seen = small_agent(prioritized=True, priority_beta=0.3), Betas(stop_after=60)
    Trainer(max_epochs=-1, callbacks=[seen], enable_checkpointing=False, **QUIET).fit(agent)
    assert seen.betas == pytest.approx([0.3] * 60)


def test_beta_survives_resume(tmp_path):
    whole, rest = Betas(), Betas()
    agent = small_agent(prioritized=True)
    saved = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    Trainer(max_epochs=3, callbacks=[whole, saved], **QUIET).fit(agent)
    trainer = Trainer(max_epochs=3, callbacks=[rest], enable_checkpointing=False, **QUIET)
    trainer.fit(small_agent(prioritized=True), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert len(rest.betas) == 100
    assert rest.betas == whole.betas[50:]


def test_priority_exponents_reach_the_buffer():
    agent = small_agent(prioritized=True, priority_alpha=0.0, priority_beta=0.9, steps_per_epoch=8)
    Trainer(max_epochs=1, limit_train_batches=1, enable_checkpointing=False, **QUIET).fit(agent)
    assert agent.buffer.beta == pytest.approx(0.9)
    assert agent.buffer.priority[: agent.buffer.size].unique().tolist() == [1]  # error ** 0


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions(precision):
    agent = small_agent(max_grad_norm=1.0, ema_decay=0.9)
    Trainer(max_epochs=2, precision=precision, enable_checkpointing=False, **QUIET).fit(agent)
    assert agent.network.advantage.weight.dtype == (torch.float64 if precision == "64-true" else torch.float32)
    assert agent.eval_returns[-1][1] > 5


def test_td_errors_become_priorities():
    agent = small_agent(prioritized=True, steps_per_epoch=8)
    Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(agent)
    assert len(agent.buffer.priority[: agent.buffer.size].unique()) > 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", [100, 101, 102])
def test_cartpole_is_solved(seed, tmp_path):
    flags = [f"--seed_everything={seed}", f"--trainer.default_root_dir={tmp_path}"]
    command = cli.CLI(["fit", f"--config={CARTPOLE}", *flags])
    assert command.trainer.test(command.model)[0]["test/return"] >= 475
