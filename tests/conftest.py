import hashlib
import math
import os
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import noise_people
from PIL import Image
from torchvision.datasets import CIFAR10

from datamodules import mnist
from lit_models.cli import main as cli

ROOT = Path(__file__).parent.parent
REPLAY = ("dqn", "ddpg", "td3", "sac")  # how the names of the configs of agents with replay begin
AGENTS = (*REPLAY, "ppo")
EXTRAS = {  # module and extra of what a config needs
    "lunarlander": ("Box2D", "box2d"),
    "halfcheetah": ("mujoco", "mujoco"),
    "invertedpendulum": ("mujoco", "mujoco"),
    "pong": ("ale_py", "atari"),
    "gpt2": ("tokenizers", "text"),
}

# cuBLAS reads it when it is first used, and repeats its results to the bit only with it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_addoption(parser):
    parser.addoption("--on-cpu", action="store_true", help="run the tests marked gpu on a CPU, as far as that goes")


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available() or config.getoption("--on-cpu"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU; --on-cpu tries it on a CPU"))


def fails(capsys, *args):
    """The one line that the command line prints, run in this process, with an exit status that isn't zero."""
    try:
        status = cli.main([str(arg) for arg in args])
    except SystemExit as stop:
        status = stop.code
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert status
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(autouse=True, scope="session")
def _mnist_is_decompressed_once():
    """That takes a second, which most tests would pay for."""
    read = mnist.read_idx
    once = cache(read)
    mnist.read_idx = lambda path, *rest: (
        once(path, *rest).clone() if path.parent == mnist.BUNDLED else read(path, *rest)
    )
    yield
    mnist.read_idx = read


@pytest.fixture(autouse=True)
def _few_threads():
    torch.set_num_threads(1)


@pytest.fixture
def run(tmp_path):
    """Runs the command line as a user does, in an empty folder, and returns the finished process."""

    def run(*args, variables=None, **options):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        environment |= variables or {}
        command = [sys.executable, "-m", "lit_models", *map(str, args)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, **options)

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of a few steps from the command line: its folder, with `version_0` below."""
    folder = tmp_path_factory.mktemp("trained")
    flags = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=60", "--trainer.limit_val_batches=4"]
    cli.CLI(["fit", f"--config={ROOT / 'configs/mnist.yaml'}", *flags, f"--trainer.default_root_dir={folder}"])
    return folder / "mnist"


@pytest.fixture
def last(trained):
    return trained / "version_0" / "checkpoints" / "last.ckpt"


@pytest.fixture
def pets(tmp_path):
    """A folder with 20 pictures of red cats and 10 of blue dogs, each of a brightness of its own."""
    for name, count, colour in (("cat", 20, (200, 30, 30)), ("dog", 10, (30, 30, 200))):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(count):
            shade = tuple(value + number for value in colour)
            Image.new("RGB", (60, 50), shade).save(tmp_path / "pets" / name / f"{number:02}.png")
    return tmp_path / "pets"


@pytest.fixture(scope="session")
def orl():
    """The folder of the ORL faces, which are for tests only and not a part of this project."""
    folder = ROOT.parent / "shared" / "data" / "orl_faces"
    if not folder.is_dir():
        pytest.skip("the ORL faces are not beside this repository: shared/data/orl_faces")
    return folder


@pytest.fixture
def series(tmp_path):
    """A CSV file of a day's temperature over 20 days, and of a constant."""
    hours = range(480)
    rows = [f"{hour},{15 + 8 * math.sin(hour / 24 * 2 * math.pi) + hour * hour % 11 / 5:.3f},7" for hour in hours]
    (tmp_path / "series.csv").write_text("hour,temperature,constant\n" + "\n".join(rows))
    return tmp_path / "series.csv"


@pytest.fixture
def faces(tmp_path):
    """A folder of six people with six pictures each."""
    return noise_people(tmp_path / "faces")


@pytest.fixture
def published_faces(tmp_path):
    """A folder with Olivetti's faces and LFW, as scikit-learn keeps them, both of noise."""
    faces = np.random.default_rng(0).random((400, 4096), np.float32)
    (tmp_path / "olivetti_py3.pkz").write_bytes(pickle.dumps(faces))  # joblib's format, uncompressed
    noise_people(tmp_path / "lfw_home" / "lfw_funneled")
    pairs = ["person 1\t1\t2", "person 2\t1\t2", "person 1\t3\tperson 2\t3", "person 1\t4\tperson 2\t4"]
    (tmp_path / "lfw_home" / "pairsDevTest.txt").write_text("\n".join(["2", *pairs]))
    return tmp_path


def skip_without_extra(config):
    """Skips a test of a config that needs an extra that is not installed."""
    for name, (module, extra) in EXTRAS.items():
        if name in config:
            pytest.importorskip(module, reason=f"needs the extra {extra}")


@pytest.fixture
def play(tmp_path):
    """A text of few kinds of characters."""
    path = tmp_path / "play.txt"
    path.write_text("To be, or not to be, that is the question:\n" * 80)
    return path


@pytest.fixture
def own_data(cifar10, pets, series, faces, published_faces, play):
    """The flags that a config needs which has no data of its own."""
    short = ["--model.eval_episodes=2", "--model.test_episodes=2"]
    few = ["--data.identities_per_batch=2", "--data.images_per_identity=2"]
    agents = {path.stem: short for path in (ROOT / "configs").glob("*.yaml") if path.stem.startswith(AGENTS)}
    agents["sac_invertedpendulum"] = ["--model.eval_episodes=16", "--model.test_episodes=2"]  # two fall alike at first
    brief = ["--model.env_options={max_episode_steps: 60}", "--model.learning_starts=300"]
    agents |= {f"{name}_halfcheetah": short + brief for name in ("td3", "sac")}
    pong = "{frameskip: 1, repeat_action_probability: 0.0, max_episode_steps: 60}"
    agents["ppo_pong"] = [*short, f"--model.env_options={pong}", "--model.num_envs=2", "--model.rollout_steps=8"]
    agents["ppo_pong"] += ["--model.batch_size=8", "--model.hidden_sizes=[32]"]
    agents["dqn_pong"] = [*short, f"--model.env_options={pong}", "--model.buffer_size=1000", "--model.num_envs=2"]
    agents["dqn_pong"] += ["--model.learning_starts=100", "--model.target_update_interval=4", "--model.batch_size=4"]
    return agents | {
        "cnn_cifar10": [f"--data.data_dir={cifar10}", "--data.val_size=20", "--data.batch_size=8"],
        "cnn_folder": [f"--data.root={pets}", "--model.num_classes=2", "--data.batch_size=8"],
        "cnn_mnist": ["--data.batch_size=8"],
        "rnn_mnist_pixels": ["--data.batch_size=4"],
        "rnn_csv": [f"--data.path={series}", "--data.columns=temperature"],
        "mnist_gpu": ["--data.batch_size=32"],
        "rnn_shakespeare": [f"--data.path={play}", "--data.batch_size=2"],
        "transformer_shakespeare": [f"--data.path={play}", "--data.batch_size=2"],
        "vit_cifar10": [f"--data.data_dir={cifar10}", "--data.val_size=20", "--data.batch_size=8"],
        "vit_folder": [f"--data.root={pets}", "--model.num_classes=2", "--data.batch_size=8"],
        "vit_mnist": ["--data.batch_size=8"],
        "transformer_gpt2_small": [
            *("--model.dim=24", "--model.depth=2", "--model.heads=2", "--model.vocab_size=400"),
            *("--model.context_length=32", "--data.context_length=16", "--data.vocab_size=300", "--data.batch_size=2"),
        ],
        "face_orl": [f"--data.root={faces}", *few],
        "face_olivetti": [f"--data.root={published_faces}"],
        "face_lfw": [f"--data.root={published_faces}", "--data.detect=false", *few],
    }


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A folder with files of random images in CIFAR-10's own format, 20 a file, which torchvision takes for genuine."""
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch():
        pixels = draw.integers(0, 256, (20, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": draw.integers(0, 10, 20).tolist()}

    train = [[f"data_batch_{number}", write(f"data_batch_{number}", batch())] for number in range(1, 6)]
    test = [["test_batch", write("test_batch", batch())]]
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", {"label_names": names})}
    for name, value in (("train_list", train), ("test_list", test), ("meta", meta)):
        monkeypatch.setattr(CIFAR10, name, value)
    return tmp_path / "cifar"
