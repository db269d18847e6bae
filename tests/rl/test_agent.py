"""What all agents share: exact resume, evaluation, errors of one line, the command line."""

import csv
import io
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
import worlds
from conftest import ROOT, fails
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import SyncVectorEnv
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image
from small import QUIET, Kept, check_resume, small_agent
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import IterableDataset

import lit_models
from lit_models.cli import main as cli
from lit_models.training.resume import RunCheckpoint
from rl import DQN
from rl.agent import Agent
from rl.env_constants import changed_constants, env_constants, find_changes
from rl.envs import env_errors, make_vector_env
from rl.networks import as_channels

SHORT = {"steps_per_epoch": 16, "learning_starts": 16, "eval_episodes": 1, "buffer_size": 100}
CARTPOLE = ROOT / "configs" / "dqn_cartpole.yaml"


def test_act_on_one_or_many():
    agent = DQN("Wages-v0", hidden_sizes=())
    with torch.no_grad():
        agent.network.advantage.bias.copy_(torch.tensor([0.0, 100.0]))
    assert agent.act(np.ones(1, np.float32)) == 6  # Discrete(2, start=5)
    assert agent.act(np.ones((3, 1), np.float32)).tolist() == [6, 6, 6]
    assert agent.predict(np.ones((3, 1), np.float32), deterministic=True)[0].tolist() == [6, 6, 6]
    random = agent.predict(np.ones((200, 1), np.float32))[0]  # epsilon is still 1
    assert set(random.tolist()) == {5, 6}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_steps": 3, "prioritized": True, "double": True, "ema_decay": 0.9, "tau": 0.1},
        {"env_id": "Acrobot-v1"},
    ],
    ids=["plain", "everything", "sync"],
)
def test_resume_is_exact(options, tmp_path):
    check_resume(lambda: small_agent(**options), tmp_path)


def test_resume_without_replay_or_env_state(tmp_path, caplog):
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


class OnPolicy(Agent):
    """The least that learns without replay: a step of the policy gradient for every step of the environments."""

    action_spaces = (spaces.Discrete,)

    def __init__(self):
        super().__init__(torch.optim.Adam, None)
        options = {
            "env_id": "CartPole-v1",
            "num_envs": 2,
            "steps_per_epoch": 40,
            "rollout_steps": 1,
            "eval_episodes": 2,
        }
        fixed = {"env_options": None, "wrappers": None, "vectorization": "sync", "grayscale": False, "frame_stack": 1}
        off = {
            "eval_max_steps": 1000,
            "gradient_steps": 1,
            "max_grad_norm": None,
            "eval_video": False,
            "test_episodes": 2,
        }
        self.save_hyperparameters(options | fixed | off)
        self.inspect_env()
        self.network = nn.Linear(4, 2)

    def greedy(self, observation):
        return self.network(observation).argmax(dim=1)

    def train_dataset(self):
        return Rollouts(self)

    def training_step(self, batch, batch_idx):
        log_probability, reward = batch
        self.optimizers().zero_grad()
        self.manual_backward(-(log_probability * reward).mean())
        self.optimizers().step()
        self.gradient_steps += 1


class Rollouts(IterableDataset):
    def __init__(self, agent):
        self.agent = agent

    def __len__(self):
        return self.agent.batches_per_epoch

    def __iter__(self):
        for _ in range(len(self)):
            policy = torch.distributions.Categorical(logits=self.agent.network(self.agent.collector.observation))
            action = torch.from_numpy(self.agent.rng.integers(2, size=2))
            yield policy.log_prob(action), self.agent.step_envs(action.numpy()).reward


def test_on_policy_agents_have_no_buffer(tmp_path, caplog):
    def train(epochs, path=None):
        seed_everything(3)
        agent, trainer = OnPolicy(), Trainer(max_epochs=epochs, enable_checkpointing=False, **QUIET)
        trainer.fit(agent, ckpt_path=path, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return agent

    whole = train(3)
    train(2)
    resumed = train(3, tmp_path / "2.ckpt")
    assert resumed.buffer is None
    assert resumed.env_steps == whole.env_steps == 120
    assert torch.equal(resumed.network.weight, whole.network.weight)
    assert "replay" not in caplog.text


def test_processes_agree_on_the_warm_up_once(monkeypatch):
    asked, asked_by_collect = [], []
    reduce = SingleDeviceStrategy.reduce_boolean_decision
    monkeypatch.setattr(
        SingleDeviceStrategy,
        "reduce_boolean_decision",
        lambda *given, **named: asked.append(0) or reduce(*given, **named),
    )

    class Counted(DQN):
        def collect(self):
            before = len(asked)
            super().collect()
            asked_by_collect.append(len(asked) - before)

    agent = Counted(num_envs=4, steps_per_epoch=200, learning_starts=100, eval_episodes=1)
    for _ in range(2):  # a second fit has a new buffer to fill
        Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(agent)
        assert agent.buffer.steps == 100 // 4 + 49  # the first of 50 batches waits for the warm-up
    assert asked_by_collect == [1, *[0] * 49] * 2


def test_resume_in_another_env_is_refused(tmp_path):
    agent, trainer = small_agent(), Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(agent)
    trainer.save_checkpoint(tmp_path / "cartpole.ckpt")
    with pytest.raises(ValueError, match="the checkpoint's agent plays CartPole-v1, not Acrobot-v1"):
        Trainer(max_epochs=2, **QUIET).fit(small_agent(env_id="Acrobot-v1"), ckpt_path=tmp_path / "cartpole.ckpt")
    loaded = DQN.load_from_checkpoint(tmp_path / "cartpole.ckpt", weights_only=True)
    seen = torch.rand(5, 4)
    assert torch.equal(loaded(seen), agent(seen))


def test_onecycle_ends_with_training():
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
        assert not torch.equal(parameters, start), "nothing was learned"
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


@pytest.mark.slow
def test_two_processes(tmp_path):
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


def test_resume_with_other_hyperparameters_is_refused(tmp_path):
    agent, trainer = small_agent(), Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(agent)
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    message = "the checkpoint was written with num_envs 4, not 2: its state does not fit"
    with pytest.raises(ValueError, match=message):
        Trainer(max_epochs=2, **QUIET).fit(small_agent(num_envs=2), ckpt_path=tmp_path / "four.ckpt", weights_only=True)


def test_agent_says_which_actions_it_takes():
    class Continuous(DQN):
        action_spaces = (spaces.Box,)

    with pytest.raises(ValueError, match=r"are Discrete\(2\): Continuous takes a Box of continuous numbers"):
        Continuous("CartPole-v1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env_id": "CartPol-v1"}, "there is no environment 'CartPol-v1'; did you mean 'CartPole-v"),
        ({"env_id": "worlds:Wags-v0"}, "there is no environment 'worlds:Wags-v0'; did you mean 'worlds:Wages-v0'"),
        (
            {"env_id": "Atari/Pong-v5"},
            "registers Atari has to be imported, .* before a colon: my_module:Atari/Pong-v5",
        ),
        ({"env_id": "Unheard-v0"}, "'Unheard-v0': .* One of your own is my_module:Name-v0"),
        ({"env_id": "CartPole-v7"}, "there is no environment 'CartPole-v7'; did you mean 'CartPole-v1' or"),
        (
            {"env_id": "nowhere:CartPole-v1"},
            "cannot make nowhere:CartPole-v1: ModuleNotFoundError: No module named 'nowhere'",
        ),
        ({"env_id": "Pendulum-v1"}, r"actions of Pendulum-v1 are continuous, .* DDPG, PPO or SAC takes them"),
        ({"env_id": "GraphSeen-v0"}, r"observations of GraphSeen-v0 are Graph\(.* cannot be flattened to a Box"),
        ({"wrappers": ["FlatenObservation"]}, "no wrapper 'FlatenObservation'; did you mean 'FlattenObservation'?"),
        ({"wrappers": ["nowhere.Wrapper"]}, "there is no wrapper 'nowhere.Wrapper': No module named 'nowhere'"),
        ({"wrappers": ["torch.nn.Linear"]}, "wrappers: torch.nn.Linear is no gymnasium.Wrapper"),
        ({"wrappers": [{"class": "FlattenObservation"}]}, "is neither a class path nor {class_path: ..., init_args:"),
        ({"wrappers": ["ResizeObservation"]}, "cannot make CartPole-v1: TypeError: .*missing 1 .* 'shape'"),
        ({"env_id": "ManyActions-v0"}, r"are MultiDiscrete\(\[2 2\]\): DQN takes one Discrete choice"),
        ({"env_options": {"color": 3}}, "cannot make CartPole-v1: TypeError: .*color"),
        ({"grayscale": True}, "cannot make CartPole-v1: ValueError: GrayscaleObservation requires an image"),
        (
            {"buffer_size": 50, "learning_starts": 9},
            "buffer_size is 50: batch_size and learning_starts need 64 or more",
        ),
        ({"buffer_size": 500}, "buffer_size is 500: batch_size and learning_starts need 1000 or more"),
        (
            {"priority_alpha": 0.5},
            "priority_alpha and priority_beta are of prioritized replay: set prioritized to true",
        ),
        ({"priority_beta": 1.0}, "priority_alpha and priority_beta are of prioritized replay: set prioritized to true"),
        ({"gamma": 1.5}, "gamma is 1.5: it must be at least 0 and at most 1"),
        ({"num_envs": 0}, "num_envs is 0: it must be at least 1"),
    ],
)
def test_errors_are_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        DQN(**options)
    assert "\n" not in str(caught.value)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match=r"LunarLander-v3 needs the extra box2d: pip install -e '.\[box2d\]'"):
        DQN("LunarLander-v3")


@pytest.mark.parametrize("when", ["", "at step 12"])
@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (
            'pygame is not installed, run `pip install "gymnasium[box2d]"`',
            r"a video needs the extra video: pip install",
        ),
        (
            'MoviePy is not installed, run `pip install "gymnasium[other]"`',
            r"a video needs the extra video: pip install",
        ),
        (
            'MuJoCo is not installed, run `pip install "gymnasium[mujoco]"`',
            "Own-v0 needs the extra mujoco: pip install",
        ),
        ("jax is not installed", "Own-v0 is not complete: jax is not installed"),
    ],
)
def test_missing_extra_is_named(reason, message, when):
    with pytest.raises(ValueError, match=message), env_errors("Own-v0", when):
        raise gymnasium.error.DependencyNotInstalled(reason)


def test_videos_need_a_folder(tmp_path):
    pytest.importorskip("moviepy", reason="needs the extra video")
    (tmp_path / "file").touch()
    agent = small_agent()
    agent.video_folder = str(tmp_path / "file" / "videos")
    with pytest.raises(OSError, match=r"cannot write videos to .*file/videos \(Not a directory\): give another folder"):
        Trainer(**QUIET).predict(agent)


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
        (
            {"env_id": "Odd-v0", "env_options": {"reward": 1e39}},
            r"Odd-v0 at step 0: environment 0 of 4 returned the reward 1.e\+39, of which float32 holds none",
        ),
        ({"env_id": "Odd-v0", "env_options": {"reward": math.nan}}, "Odd-v0 at step 0: .* returned the reward nan"),
        ({"env_id": "Odd-v0", "env_options": {"reward": 1e30}, "loss": "mse"}, "train/loss is inf at environment step"),
        (
            {"env_id": "Odd-v0", "env_options": {"ends_process": 3}, "vectorization": "async"},
            r"Odd-v0 at step 8: a process of its environments has ended \(status 7\), .* model.vectorization sync",
        ),
    ],
)
def test_training_errors_are_one_line(options, message):
    agent = small_agent(**{"env_id": "Wages-v0"} | options)
    with pytest.raises(ValueError, match=message):
        Trainer(max_epochs=1, num_sanity_val_steps=0, enable_checkpointing=False, **QUIET).fit(agent)


def test_broken_env_leaves_last_checkpoint(tmp_path, capsys, monkeypatch):
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


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.limit_train_batches=5"]
    assert cli.main(["fit", f"--config={CARTPOLE}", "--trainer.max_epochs=2", *short]) == 0
    assert "Best checkpoint (eval/return " in capsys.readouterr().out
    run = tmp_path / "logs" / "dqn_cartpole" / "version_0"
    assert cli.main(["test", f"--config={CARTPOLE}", "--ckpt_path=last", "--model.test_episodes=7"]) == 0
    printed = capsys.readouterr().out
    for name in ("test/return", "test/return_std", "test/return_min", "test/return_max"):
        assert f"\n{name} " in printed
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
        (["fit", "--model=DQN", "--model.buffer_size=10"], "error: buffer_size is 10: batch_size and"),
    ],
)
def test_command_line_errors_are_one_line(args, message, tmp_path, capsys):
    assert message in fails(capsys, *args, f"--trainer.default_root_dir={tmp_path}")


def test_video_needs_an_agent(trained, tmp_path, capsys):
    last = trained / "version_0" / "checkpoints" / "last.ckpt"
    message = fails(capsys, "predict", f"--ckpt_path={last}", f"--video={tmp_path}")
    assert "--video: Net plays no episodes" in message


def test_env_from_a_module(tmp_path, capsys):
    own = ["--model=DQN", "--model.env_id=worlds:Wages-v0", "--model.eval_episodes=2", "--model.test_episodes=2"]
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", f"--trainer.default_root_dir={tmp_path}"]
    assert cli.main(["fit", *own, *short, "--name=own"]) == 0
    last = f"--ckpt_path={tmp_path / 'own' / 'version_0' / 'checkpoints' / 'last.ckpt'}"
    broken = ["--modules=worlds", "--model.env_options={breaks: raise}"]
    output = f"--output={tmp_path / 'episodes.csv'}"
    assert "raised OSError: the motor is gone" in fails(capsys, "predict", last, output, *broken)
    assert "raised OSError: the motor is gone" in fails(capsys, "test", last, *broken)
    assert not list(tmp_path.glob("episodes*"))


def test_videos(tmp_path, capsys):
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


@pytest.mark.parametrize("at", ["training", "test"])
def test_env_that_has_changed_is_not_gone_on_with(at, tmp_path, monkeypatch):
    def fit(epochs, path=None, **options):
        agent = small_agent(env_id="Odd-v0", env_options=options or None)
        trainer = Trainer(max_epochs=epochs, enable_checkpointing=False, **QUIET)
        trainer.fit(agent, ckpt_path=path, weights_only=True)
        return trainer

    def again(message, **options):
        if at == "test":
            with pytest.warns(UserWarning, match=message):
                Trainer(**QUIET).test(small_agent(env_id="Odd-v0"), ckpt_path=tmp_path / "old.ckpt", weights_only=True)
        else:
            with pytest.raises(ValueError, match=message) as caught:
                fit(2, tmp_path / "old.ckpt", **options)
            assert "\n" not in str(caught.value)

    fit(1).save_checkpoint(tmp_path / "old.ckpt")
    assert fit(2, tmp_path / "old.ckpt").current_epoch == 2  # what is drawn anew is no change
    for holder, name, value, shown in (
        (worlds, "RATE", 3, "worlds.RATE: 1 -> 3"),
        (worlds.Odd, "pay", 4, "worlds.Odd.pay: 1 -> 4"),
        (worlds.Odd.__init__, "__defaults__", (None, None, 1.0, 5, None, 9), r"worlds.Odd.factor: 1 -> 9\)"),
        (worlds.Odd.__init__, "__defaults__", (None, None, 1.0, 6, None, 1), r"worlds.Odd.length: 5 -> 6\)"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(holder, name, value)
            again(f"Odd-v0 is not as it was at the checkpoint .*{shown}")
    if at == "training":
        again(r"env_options\['factor'\]: None -> 9", factor=9)


def test_what_tells_of_process_time_or_chance_is_no_change(tmp_path):
    code = """
        import json, os, sys, worlds, rl.env_constants as constants, time
        os.chdir(sys.argv[2])
        found = constants.fresh_constants(env_id="Busy-v0")
        time.strftime, earlier = lambda text: "logs/2024-02-03_04-05-06", time.time()
        time.time = lambda: earlier - 10**7
        json.dump([found, constants.fresh_constants(env_id="Busy-v0")], sys.stdout)
    """
    path = os.pathsep.join(sys.path)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), "cuda", tmp_path],
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": path},
        capture_output=True,
        check=True,
    )
    for then in json.loads(run.stdout):
        worlds.Busy.seen.clear()
        assert find_changes(then, env_id="Busy-v0") == ""
    worlds.Busy.seen.clear()
    then["worlds.Busy.breaks"], then["worlds.Busy.terminates"] = "the first\nday", True
    assert find_changes(then, env_id="Busy-v0") == (
        "worlds.Busy.terminates: True -> False, worlds.Busy.breaks: the first day -> None"
    )


def test_env_that_fills_tables_resumes_in_the_same_process(tmp_path):
    for epochs, path in ((1, None), (2, tmp_path / "busy.ckpt")):
        trainer = Trainer(max_epochs=epochs, enable_checkpointing=False, **QUIET)
        trainer.fit(small_agent(env_id="Busy-v0"), ckpt_path=path, weights_only=True)
        trainer.save_checkpoint(tmp_path / "busy.ckpt")
    assert trainer.current_epoch == 2
    assert worlds.Busy.seen


def test_large_tables_of_an_env_are_read_as_arrays():
    env = worlds.Odd()
    env.rates = [[float(row)] * 500 for row in range(500)]
    before = env_constants(env)
    env.rates[3][4] = -1.0
    assert list(changed := changed_constants(before, env_constants(env))) == ["worlds.Odd.rates[...]"]
    assert changed["worlds.Odd.rates[...]"].startswith("array (500, 500), checksum ")


def test_tables_of_an_env_are_compared():
    env = worlds.Odd()
    before = env_constants(env)
    env.rates["tax"], env.table = 0.25, np.arange(1000)
    changed = changed_constants(before, env_constants(env))
    assert changed["worlds.Odd.rates['tax']"] == "0.5 -> 0.25"
    before = env_constants(env)
    env.table[17] = 3
    assert list(changed_constants(before, env_constants(env))) == ["worlds.Odd.table"]


def test_episode_without_end_is_named():
    agent = small_agent(env_id="Odd-v0", env_options={"length": -1}, eval_max_steps=50)
    message = r"Odd-v0: an episode has not ended after 50 steps: .* \{max_episode_steps: 1000\}.* model.eval_max_steps"
    for play in (Trainer.fit, Trainer.test, Trainer.predict):
        with pytest.raises(ValueError, match=message):
            play(Trainer(max_epochs=1, **QUIET), agent)
    agent = small_agent(env_id="Odd-v0", env_options={"length": -1, "max_episode_steps": 50}, eval_max_steps=50)
    assert Trainer(**QUIET).test(agent, verbose=False)[0]["test/length"] == 50


@pytest.mark.parametrize("when", ["validation", "test", "predict", "warm-up"])
def test_sigterm_ends_playing(when, tmp_path, monkeypatch):
    def step(self, action):
        if self.steps == 300:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, action)

    original, warming = worlds.Odd.step, when == "warm-up"
    monkeypatch.setattr(worlds.Odd, "step", step)
    options = {"env_options": {"length": -1 if warming else 10**6}, "eval_max_steps": 10**9}
    agent = small_agent(env_id="Odd-v0", learning_starts=5000 if warming else 100, buffer_size=5000, **options)
    checkpoint = RunCheckpoint(dirpath=tmp_path, save_last=True)
    trainer = Trainer(max_epochs=1, num_sanity_val_steps=0, callbacks=[checkpoint], **QUIET)
    with pytest.raises(SIGTERMException):
        getattr(trainer, when if when in ("test", "predict") else "fit")(agent)
    assert (tmp_path / "last.ckpt").is_file() == (when == "validation")
    assert agent.env_steps == {"validation": 296, "warm-up": 4 * 301}.get(when, 0)


def test_checkpoint_before_nan_is_kept(tmp_path):
    checkpoint = RunCheckpoint(dirpath=tmp_path, save_last=True)
    checkpoint.every_n_steps = 2

    class Broken(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 20:
                batch.reward.fill_(math.inf)

    trainer = Trainer(max_epochs=2, num_sanity_val_steps=0, callbacks=[Broken(), checkpoint], **QUIET)
    agent = small_agent(loss="mse")
    with (
        pytest.warns(UserWarning, match="no checkpoint is written, and those from before are kept"),
        pytest.raises(ValueError, match=r"train/loss is (inf|nan) at environment step 180: lower model"),
    ):
        trainer.fit(agent)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["env_steps"] < 180
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (spaces.Discrete(3, start=2), (3,), torch.int8),
        (spaces.MultiDiscrete([2, 3]), (5,), torch.int8),
        (spaces.MultiBinary([2, 2]), (4,), torch.int8),
        (spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (2,), np.float32))), (4,), torch.float64),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0, 255, (2, 2), np.uint8)), (6,), torch.int64),
        (spaces.Box(-1, 1, (), np.float32), (1,), torch.float32),
        (spaces.Box(0, 1, (3,), bool), (3,), torch.bool),
        (spaces.Box(0, 60_000, (2, 3), np.uint16), (2, 3), torch.int32),
        (spaces.Box(0, 2**32 - 1, (3,), np.uint32), (3,), torch.int64),
        (spaces.Box(0, 2**40, (3,), np.uint64), (3,), torch.float64),
        (spaces.Box(-3, 3, (3,), np.float16), (3,), torch.float16),
        (spaces.Box(-3, 3, (3,), np.int8), (3,), torch.int8),
        (spaces.Box(0, 255, (3, 40, 36), np.uint8), (3, 40, 36), torch.uint8),
    ],
    ids=str,
)
@pytest.mark.parametrize("frames", [1, 2])
def test_any_observations_are_learned_from(space, shape, dtype, frames, monkeypatch):
    spec = EnvSpec("Seen-v0", entry_point=worlds.Odd, kwargs={"space": space})
    monkeypatch.setitem(gymnasium.registry, "Seen-v0", spec)
    agent = small_agent(env_id="Seen-v0", frame_stack=frames, **SHORT)
    assert agent.observation_space.shape == (shape if frames == 1 else (frames, *shape))
    Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(agent)
    assert agent.buffer.observation.dtype == dtype
    assert all(parameter.isfinite().all() for parameter in agent.parameters())


def test_vector_form_of_other_spaces_is_not_taken():
    envs = make_vector_env("Vectorized-v0", 2)
    assert type(envs) is SyncVectorEnv
    assert envs.reset(seed=0)[0].shape == (2, 2)
    assert type(make_vector_env("CartPole-v1", 2)) is CartPoleVectorEnv


def test_wrappers_travel_in_the_checkpoint(tmp_path, capsys, monkeypatch):
    own = "{class_path: worlds.Multiplied, init_args: {times: 3}}"
    flags = ["--model=DQN", "--model.env_id=CartPole-v1", "--model.eval_episodes=1", "--name=wrapped"]
    flags += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", f"--trainer.default_root_dir={tmp_path}"]
    assert cli.main(["fit", *flags, f"--model.wrappers=[{own}, TimeAwareObservation]"]) == 0
    printed = capsys.readouterr()
    assert "CartPole-v1: observations of 5 numbers" in printed.err
    assert printed.out.rstrip().endswith("--modules worlds")
    path = tmp_path / "wrapped" / "version_0" / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"holds worlds.Multiplied, from a module .* add --modules worlds "):
        lit_models.load(path)
    agent = lit_models.load(path, modules="worlds")
    assert agent.act(np.zeros(5, np.float32)) in (0, 1)
    with pytest.raises(ValueError, match=r"an observation has the shape \(4,\), not \(5,\): play in .*make_env"):
        agent.act(np.zeros(4, np.float32))
    result = Trainer(**QUIET).test(agent, verbose=False)[0]
    assert result["test/return"] == pytest.approx(3 * result["test/length"])
    content = torch.load(path, weights_only=True)
    for wrapper in (
        "RecordVideo",
        {"class_path": "gymnasium.wrappers.RecordVideo", "init_args": {"video_folder": "x"}},
    ):
        content["hyper_parameters"]["wrappers"] = [wrapper]
        torch.save(content, tmp_path / "films.ckpt")
        with pytest.raises(ValueError, match="RecordVideo, from a module that is imported only if you name it"):
            lit_models.load(tmp_path / "films.ckpt")
    content["hyper_parameters"]["wrappers"] = [
        {"class_path": "FlattenObservation", "init_args": {"x": {"class_path": "a.B"}}}
    ]
    torch.save(content, tmp_path / "nested.ckpt")
    with pytest.raises(ValueError, match=r"'a.B' in env_options or wrappers: a class there"):
        lit_models.load(tmp_path / "nested.ckpt")


def test_channels_first_are_stacked_as_channels():
    frames = torch.randint(256, (2, 4, 3, 40, 36), dtype=torch.uint8)
    images = as_channels(frames)
    assert torch.equal(images, frames.reshape(2, 12, 40, 36))
    assert torch.equal(as_channels(frames.permute(0, 1, 3, 4, 2)), images)
    with pytest.raises(ValueError, match=r"observations of shape \(2, 4, 3, 40, 36\) are no images"):
        as_channels(frames[None])


def test_boards_of_bytes_are_pointed_to_flattening(monkeypatch):
    spec = EnvSpec("Board-v0", entry_point=worlds.Odd, kwargs={"space": spaces.Box(0, 2, (8, 8), np.uint8)})
    monkeypatch.setitem(gymnasium.registry, "Board-v0", spec)
    with pytest.raises(ValueError, match=r"images of 8x8 pixels are too small: .*FlattenObservation"):
        small_agent(env_id="Board-v0")
    assert small_agent(env_id="Board-v0", wrappers=["FlattenObservation"]).observation_space.shape == (64,)


def test_a_trained_agent_is_pickled_whatever_it_played():
    agent = small_agent(env_id="Acrobot-v1", eval_episodes=1, env_options={"max_episode_steps": 50})
    trainer = partial(Trainer, max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer().fit(agent)
    again = pickle.loads(pickle.dumps(agent))
    assert torch.equal(again(agent.example_input_array), agent(agent.example_input_array))
    trainer().fit(again)
    assert again.gradient_steps > agent.gradient_steps


def test_a_model_of_mujoco_that_is_not_there_is_named():
    pytest.importorskip("mujoco", reason="needs the extra mujoco")
    with pytest.raises(ValueError, match=r"nope.xml does not exist: give a file that is there, .* xml_file"):
        DQN("HalfCheetah-v5", env_options={"xml_file": "/nope.xml"})


def test_pong_trains(tmp_path, capsys):
    pytest.importorskip("ale_py", reason="needs the extra atari")
    pytest.importorskip("cv2", reason="needs the extra atari")
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=0"]
    short += ["--model.num_envs=2", "--model.learning_starts=64", "--model.buffer_size=200", "--model.batch_size=4"]
    config = f"--config={ROOT / 'configs' / 'dqn_pong.yaml'}"
    assert cli.main(["fit", config, *short, f"--trainer.default_root_dir={tmp_path}"]) == 0
    assert "ALE/Pong-v5: observations of images of 4x84x84 pixels, 6 actions" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"Disable frame-skipping .*: set model.env_options to {frameskip: 1}"):
        DQN("ale_py:ALE/Pong-v5", wrappers=["AtariPreprocessing"])
    assert type(make_vector_env("ale_py:ALE/Pong-v5", 1)) is SyncVectorEnv  # its own shows something else
    with pytest.raises(ValueError, match="did you mean 'ale_py:ALE/Pong-v5'"):
        DQN("ale_py:ALE/Pongg-v5")


def test_atari_hint_is_for_atari_alone():
    pytest.importorskip("cv2", reason="needs the extra atari")
    with pytest.raises(ValueError, match="Disable frame-skipping") as caught:
        DQN("MountainCar-v0", wrappers=["AtariPreprocessing"])
    assert "frameskip: 1" not in str(caught.value)


@pytest.mark.parametrize("name", ["NormalizeObservation", "NormalizeReward"])
def test_wrappers_with_statistics_of_their_own_are_warned_of(name):
    with pytest.warns(UserWarning, match="evaluation and checkpoints lack those of training; scale by fixed numbers"):
        DQN("MountainCar-v0", wrappers=[name])


def test_namespace_that_needs_an_import():
    code = "from rl import DQN; DQN('ALE/Pong-v5')"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "'ALE/Pong-v5': the package that registers ALE has to be imported, " in done.stderr
    assert done.stderr.rstrip().endswith("before a colon: ale_py:ALE/Pong-v5")


def test_missing_atari_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ValueError, match=r"ale_py:ALE/Pong-v5 needs the extra atari: pip install -e '.\[atari\]'"):
        DQN("ale_py:ALE/Pong-v5")


def test_description_of_an_env_is_one_line():
    space = spaces.MultiDiscrete(np.array([[2, 3], [2, 2]]))
    gymnasium.register("TableSeen-v0", worlds.Odd, kwargs={"space": space})
    agent = small_agent(env_id="TableSeen-v0")
    assert "9 numbers (flattened from MultiDiscrete([[2 3] [2 2]]))" in agent.description
