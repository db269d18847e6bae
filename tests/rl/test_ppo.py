"""PPO: advantages, distributions, loss, and what it learns."""

import math
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from conftest import ROOT, fails
from gymnasium import spaces
from lightning import Trainer, seed_everything
from small import check_resume
from torch import distributions
from torch.optim.lr_scheduler import LinearLR

from lit_models.cli import main as cli
from rl import PPO, RolloutBuffer
from rl.distributions import make_distribution
from rl.networks import RunningNormalization
from rl.rollout_buffer import Rollout, estimate_advantages

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
SMALL = {"num_envs": 4, "rollout_steps": 8, "batch_size": 16, "epochs": 2, "steps_per_epoch": 64, "eval_episodes": 2}


@pytest.fixture(autouse=True)
def seeded():
    seed_everything(0)


class Match(gymnasium.Env):
    """Says 0 or 1, and pays 1 for the same answer: whether it does is all there is to know."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)

    def __init__(self, actions="discrete", length=4, ends=True):
        kinds = {
            "discrete": spaces.Discrete(2, start=3),
            "several": spaces.MultiDiscrete([2, 3]),
            "binary": spaces.MultiBinary(2),
            "box": spaces.Box(np.float32([[-3]]), np.float32([[5]])),
        }
        self.action_space, self.length, self.ends = kinds[actions], length, ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.said = 0, int(self.np_random.integers(2))
        return np.float32([self.said]), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        if isinstance(self.action_space, spaces.Box):
            reward = 1 - abs(float(action[0, 0]) - (4.0 if self.said else 0.0))
        else:
            first = int(np.ravel(action)[0]) - (3 if isinstance(self.action_space, spaces.Discrete) else 0)
            reward = float(first == self.said)
        self.steps, self.said = self.steps + 1, int(self.np_random.integers(2))
        over = self.steps == self.length
        return np.float32([self.said]), reward, over and self.ends, over and not self.ends, {}


gymnasium.register("Match-v0", Match)


def test_advantages_are_the_sum_of_errors_written_out():
    reward = torch.tensor([[1.0], [2.0], [3.0], [0.0], [4.0]])
    value = torch.tensor([[0.5], [1.0], [1.5], [2.0], [2.5], [3.0]])
    terminated = torch.tensor([[False], [False], [True], [False], [False]])
    gamma, decay = 0.9, 0.9 * 0.8
    found = estimate_advantages(reward, value, terminated, terminated, gamma, 0.8)[:, 0].tolist()
    errors = [1 + 0.9 * 1 - 0.5, 2 + 0.9 * 1.5 - 1, 3 - 1.5, 0 + 0.9 * 2.5 - 2, 4 + 0.9 * 3 - 2.5]
    expected = [errors[0] + decay * errors[1] + decay**2 * errors[2], errors[1] + decay * errors[2], errors[2]]
    expected += [errors[3] + decay * errors[4], errors[4]]
    assert found == pytest.approx(expected)
    truncated = estimate_advantages(reward, value, torch.zeros_like(terminated), terminated, gamma, 0.8)[:, 0].tolist()
    cut = 3 + 0.9 * 2 - 1.5  # its last observation is worth something, but what comes after is another episode
    assert truncated[2:4] == pytest.approx([cut, expected[3]])


def test_advantages_are_those_of_stable_baselines3():
    buffers = pytest.importorskip("stable_baselines3.common.buffers", reason="needs the extra bench")
    draw, steps, envs = np.random.default_rng(0), 40, 3
    box, choice = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
    theirs = buffers.RolloutBuffer(steps, box, choice, "cpu", gae_lambda=0.9, gamma=0.97, n_envs=envs)
    reward, value = draw.normal(size=(steps, envs)), torch.from_numpy(draw.normal(size=(steps + 1, envs)))
    terminated, truncated = draw.random((steps, envs)) < 0.1, draw.random((steps, envs)) < 0.1
    done, start = terminated | truncated, np.ones(envs)
    for step in range(steps):
        # There, a truncated episode's last reward already has its last observation's value.
        paid = reward[step] + 0.97 * value[step + 1].numpy() * (truncated[step] & ~terminated[step])
        theirs.add(np.zeros((envs, 2)), np.zeros((envs, 1)), paid, start, value[step], torch.zeros(envs))
        start = done[step]
    theirs.compute_returns_and_advantage(value[-1], done[-1])
    parts = (torch.from_numpy(part) for part in (reward, terminated, done))
    reward, terminated, done = parts
    ours = estimate_advantages(reward.double(), value, terminated, done, 0.97, 0.9)
    torch.testing.assert_close(ours.float(), torch.from_numpy(theirs.advantages), rtol=1e-4, atol=1e-4)


def test_a_rollout_leaves_resets_out():
    buffer = RolloutBuffer(3, 2, (1,))
    off, first = torch.tensor([False, False]), torch.tensor([True, False])
    for step, (terminated, autoreset) in enumerate([(first, off), (off, first), (off, off)]):
        observation, none = torch.full((2, 1), float(step)), torch.zeros(2)
        buffer.add(observation, none, none, none + 1, observation + 1, terminated, off, autoreset)
    rollout = buffer.rollout(torch.zeros(4, 2), 0.5, 1.0)
    assert rollout.observation[:, 0].tolist() == [0, 0, 1, 2, 2]
    assert rollout.advantage.tolist() == [1, 1.75, 1.5, 1, 1]


SPACES = {
    "discrete": spaces.Discrete(3, start=-1),
    "several": spaces.MultiDiscrete([[2, 3], [4, 2]]),
    "binary": spaces.MultiBinary((2, 2)),
    "box": spaces.Box(np.float32([[-1, 0]]), np.float32([[3, 10]])),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,)),
}


@pytest.mark.parametrize("name", SPACES)
def test_actions_are_as_probable_as_torch_has_them(name):
    space = SPACES[name]
    own, draw = make_distribution(space), torch.Generator().manual_seed(0)
    parameters = torch.randn(5, own.num_parameters, generator=draw)
    action = own.sample(parameters, np.random.default_rng(0))
    log_prob, entropy = own.evaluate(parameters, action)
    if isinstance(space, spaces.Box):
        theirs = [distributions.Normal(parameters[:, :2], parameters[:, 2:].exp())]
        expected = theirs[0].log_prob(action).sum(1), theirs[0].entropy().sum(1)
    else:
        theirs = [distributions.Categorical(logits=logits) for logits in parameters.split(own.sizes, dim=1)]
        logs = [one.log_prob(column) for one, column in zip(theirs, action.T, strict=True)]
        expected = torch.stack(logs).sum(0), torch.stack([one.entropy() for one in theirs]).sum(0)
    torch.testing.assert_close((log_prob, entropy), expected)
    for taken in (*own.to_env(action), *own.to_env(own.mode(parameters))):
        assert space.contains(taken.numpy().astype(space.dtype) if space.shape else int(taken))


def test_actions_are_drawn_as_often_as_they_are_probable():
    choice = make_distribution(SPACES["discrete"])
    parameters = torch.tensor([[0.0, 1.0, 2.0]]).expand(20_000, 3)
    drawn = choice.sample(parameters, np.random.default_rng(0))[:, 0].bincount(minlength=3) / 20_000
    torch.testing.assert_close(drawn, parameters[0].softmax(0), rtol=0, atol=0.015)
    box = make_distribution(SPACES["box"])
    drawn = box.sample(torch.tensor([[0.5, -1.0, 0.0, math.log(0.3)]]).expand(20_000, 4), np.random.default_rng(0))
    assert drawn.mean(0).tolist() == pytest.approx([0.5, -1.0], abs=0.03)
    assert drawn.std(0).tolist() == pytest.approx([1.0, 0.3], rel=0.05)


def test_a_box_is_scaled_within_its_bounds():
    box = make_distribution(SPACES["box"])
    assert box.to_env(torch.tensor([[-1.0, -1.0], [0.0, 0.5], [9.0, 9.0]])).tolist() == [
        [[-1, 0]],
        [[1, 7.5]],
        [[3, 10]],
    ]


@pytest.fixture
def agent():
    seed_everything(0)
    made = PPO("Match-v0", normalize_advantages=False, value_coefficient=0.0, **SMALL)
    made.trainer = Trainer(**QUIET)
    made.manual_backward = lambda loss: loss.backward()
    return made


def gradient(agent, ratio, advantage):
    """The loss, and the gradient of the logits, of one step whose probability has changed by a ratio."""
    observation, action = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64)
    log_prob = agent.distribution.evaluate(agent.network.act(observation), action)[0].detach()
    batch = Rollout(observation, action, log_prob - math.log(ratio), torch.zeros(1), torch.tensor([advantage]))
    found = {}
    return agent.learn(batch, found).item(), agent.network.policy.bias.grad.abs().sum().item(), found


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        *[(1.0, 2.0, -2.0, True), (1.1, 2.0, -2.2, True), (1.5, 2.0, -2.4, False), (0.5, 2.0, -1.0, True)],
        *[(1.0, -2.0, 2.0, True), (0.5, -2.0, 1.6, False), (1.5, -2.0, 3.0, True)],
    ],
)
def test_clipping_stops_the_gradient_where_it_should(ratio, advantage, loss, moves, agent):
    found, moved, logged = gradient(agent, ratio, advantage)
    assert found == pytest.approx(loss, rel=1e-5)
    assert (moved > 1e-3) == moves
    assert logged["clip_fraction"].item() == (not 0.8 <= ratio <= 1.2)
    assert logged["kl"].item() == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-6)


def test_the_first_minibatch_has_the_ratio_one(monkeypatch):
    seen, learn = [], PPO.learn

    def watch(self, batch, found):
        loss = learn(self, batch, found)
        seen.append(found["kl"].abs().item())
        return loss

    monkeypatch.setattr(PPO, "learn", watch)
    seed_everything(0)
    agent = PPO(normalize_observations=True, **SMALL)
    Trainer(max_epochs=2, enable_checkpointing=False, **QUIET).fit(agent)
    firsts = seen[:: agent.steps_per_batch]
    assert len(firsts) == 4
    assert max(firsts) < 1e-6 < max(seen)


def test_values_are_clipped_and_advantages_normalized_if_asked(agent):
    observation = torch.zeros(2, 1)
    action = torch.tensor([[0], [1]])
    log_prob = agent.distribution.evaluate(agent.network.act(observation), action)[0].detach()
    value = agent.network.evaluate(observation).detach() - torch.tensor([1.0, -1.0])  # it has moved by 1 and -1
    batch, found = Rollout(observation, action, log_prob, value, torch.tensor([1.0, 3.0])), {}
    agent.learn(batch, found)
    assert found["value_loss"].item() == pytest.approx((0**2 + 4**2) / 2, rel=1e-5)
    assert found["policy_loss"].item() == pytest.approx(-2)
    agent.hparams.update(value_clip=0.5, normalize_advantages=True)
    agent.learn(batch, found)
    assert found["value_loss"].item() == pytest.approx((0.5**2 + 4**2) / 2, rel=1e-5)
    assert found["policy_loss"].item() == pytest.approx(0, abs=1e-6)  # of -1 and 1


@pytest.mark.parametrize("actions", ["discrete", "several", "binary", "box"])
def test_it_learns_what_pays(actions):
    seed_everything(1)
    optimizer = partial(torch.optim.Adam, lr=0.01)
    options = {"num_envs": 8, "rollout_steps": 16, "batch_size": 64, "epochs": 6, "steps_per_epoch": 2048}
    learnt = {"gamma": 0.5, "reward_scale": 0.5, "hidden_sizes": (16,), "optimizer": optimizer}
    agent = PPO("Match-v0", {"actions": actions}, **learnt, **options)
    Trainer(max_epochs=3, enable_checkpointing=False, **QUIET).fit(agent)
    returns, _ = agent._evaluate(20, "test")
    assert returns.mean() > 3.2 if actions == "box" else returns.mean() == 4
    if actions == "discrete":  # the steps left, which are not observed, are worth 1, 1.5, 1.75 and 1.875
        value = agent.value(torch.tensor([[0.0], [1.0]])).tolist()
        assert value == pytest.approx([1.53, 1.53], abs=0.3)


def test_a_truncated_episode_is_worth_what_follows():
    found = {}
    for ends in (True, False):
        seed_everything(1)
        optimizer = partial(torch.optim.Adam, lr=0.01)
        options = {"num_envs": 8, "rollout_steps": 16, "batch_size": 64, "epochs": 6, "steps_per_epoch": 2048}
        env = {"length": 2, "ends": ends}
        agent = PPO("Match-v0", env, gamma=0.8, hidden_sizes=(16,), optimizer=optimizer, **options)
        Trainer(max_epochs=4, enable_checkpointing=False, **QUIET).fit(agent)
        found[ends] = agent.network.evaluate(torch.tensor([[0.0], [1.0]])).mean().item()
    assert found[True] == pytest.approx((1 + 1.8) / 2, abs=0.25)
    assert found[False] == pytest.approx(1 / (1 - 0.8), abs=0.8)  # it would go on for ever


def test_observations_are_normalized_by_all_that_was_seen():
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(50, 2, generator=draw) * 3 + 100, torch.randn(150, 2, generator=draw) + 90]
    running = RunningNormalization((2,))
    strategy = Trainer(**QUIET).strategy
    for part in parts:
        running.update(part, strategy)
    everything = torch.cat(parts)
    torch.testing.assert_close(running.mean, everything.mean(0))
    torch.testing.assert_close(running.var, everything.var(0, correction=0), rtol=1e-4, atol=0)
    normalized = running(everything)
    assert normalized.mean().abs() < 1e-3
    assert running(torch.full((1, 2), 1e6)).tolist() == [[10, 10]]


def test_the_statistics_travel_with_the_checkpoint(tmp_path):
    seed_everything(0)
    agent = PPO(normalize_observations=True, **SMALL)
    trainer = Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(agent)
    trainer.save_checkpoint(tmp_path / "agent.ckpt")
    again = PPO.load_from_checkpoint(tmp_path / "agent.ckpt", weights_only=True)
    assert again.network.normalization.count > 50
    x = torch.randn(3, 4)
    assert torch.equal(again(x), agent(x))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "VectorPendulum-v1"])
def test_resume_is_exact(env_id, tmp_path):
    schedule = partial(LinearLR, start_factor=1.0, end_factor=0.1, total_iters=4)
    options = SMALL | {"steps_per_epoch": 4 * 32, "normalize_observations": True, "anneal_clip_range": True}
    check_resume(lambda: PPO(env_id, lr_scheduler=schedule, **options), tmp_path)


def test_two_processes_share_statistics_and_end_their_epochs_together():
    agent = PPO(normalize_observations=True, target_kl=0.005, **SMALL)
    Trainer(max_epochs=2, strategy="ddp_spawn", devices=2, enable_checkpointing=False, **QUIET).fit(agent)
    assert 2 * 50 < agent.network.normalization.count <= 2 * 64  # of both, less what only reset an environment


def test_epochs_end_where_the_policy_has_moved_far_enough():
    steps = []
    for target in (None, 1e-9):
        seed_everything(0)
        agent = PPO(target_kl=target, **SMALL | {"epochs": 5})
        Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(agent)
        steps.append(agent.gradient_steps)
    assert steps == [2 * 5 * 2, 2 * 1 * 2]


def test_the_clip_range_falls_to_zero():
    agent, seen = PPO(anneal_clip_range=True, **SMALL), []
    agent.step_schedules = lambda interval: seen.append(agent.epsilon)
    Trainer(max_epochs=2, enable_checkpointing=False, **QUIET).fit(agent)
    assert sorted(set(seen), reverse=True) == pytest.approx([0.2, 0.15, 0.1, 0.05])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 3, "rollout_steps": 5, "batch_size": 4}, "a rollout has 15 steps .* set batch_size to 3"),
        ({"num_envs": 2, "rollout_steps": 4, "batch_size": 64}, "a rollout has 8 steps .* set batch_size to 8"),
        ({"clip_range": 0}, "clip_range"),
        ({"env_id": "worlds:Bytes-v0"}, "the actions of worlds:Bytes-v0 are integers, .* Box of float32"),
        (
            {"env_id": "Screen-v0", "normalize_observations": True},
            "Screen-v0 has images, which are scaled to 0..1 anyway",
        ),
        ({"gae_lambda": 1.5}, "gae_lambda"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PPO(**options)


def test_a_checkpoint_of_another_algorithm_is_refused(tmp_path, capsys):
    few = ["--trainer.max_epochs=1", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
    few += [f"--model.{name}={value}" for name, value in SMALL.items()]
    assert cli.main(["fit", "--model=PPO", *few]) == 0
    last = next(tmp_path.rglob("last.ckpt"))
    said = fails(capsys, "test", "--model=DQN", f"--ckpt_path={last}")
    assert "PPO" in said


@pytest.mark.slow
def test_cartpole_is_solved(tmp_path):
    config = f"--config={ROOT / 'configs' / 'ppo_cartpole.yaml'}"
    assert cli.main(["fit", config, f"--trainer.default_root_dir={tmp_path}", "--model.eval_episodes=1"]) == 0
    command = cli.CLI(["test", f"--ckpt_path={next(tmp_path.rglob('last.ckpt'))}"])
    assert command.trainer.callback_metrics["test/return"] >= 475
