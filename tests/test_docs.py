"""README and docs: every command and example in them runs, and what they refer to exists."""

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from datetime import date, timedelta

import pytest
from conftest import ROOT
from drawn import person, scene
from lightning import Trainer
from PIL import Image

import datamodules
import lit_models
import rl
from lit_models.cli import main as cli

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Parts of a line that set up an environment, which the tests run in; `.ci/run` runs them.
SET_UP = ("python3 -m venv ", ". .venv/bin/activate", "pip install ")
NOT_RUN = {
    "python -m pytest -n auto --dist worksteal": "runs these tests; .ci/run does it",
    "ruff check .": ".ci/run does it",
    "ruff format --check .": ".ci/run does it",
    "tensorboard --logdir logs": "a server, which does not end",
    "python -m benchmarks.gpu": "takes minutes; test_gpu_benchmark.py does it",
    "python -m lit_models fit --config configs/cnn_cifar10.yaml": "downloads CIFAR-10",
    "python -m lit_models fit --config configs/mnist.yaml --data.variant FashionMNIST --data.data_dir data "
    "--data.download true": "downloads FashionMNIST",
    "srun --nodes 2 --ntasks-per-node 4 --gres gpu:4 python -m lit_models fit --config configs/mnist.yaml "
    "--trainer.num_nodes 2 --trainer.devices 4 --trainer.strategy ddp": "needs a cluster",
}
SHORT = ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"]
SHORT += ["--trainer.limit_train_batches=12", "--trainer.limit_val_batches=2"]


def blocks(page, *languages):
    return [(language, text) for language, text in BLOCK.findall(PAGES[page]) if language in languages]


def commands(page):
    """Its lines for a shell, without the parts that set up an environment."""
    lines = [line for _, text in blocks(page, "bash") for line in text.splitlines()]
    parts = [" && ".join(part for part in line.split(" && ") if not part.startswith(SET_UP)) for line in lines]
    return [part for part in parts if part]


def prose(page):
    return BLOCK.sub("", PAGES[page])


class Reader:
    """Does what a page says, in a folder, where only training is made short."""

    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        self.said, self.names = {}, {}  # what each line has printed, and all names of the examples
        (folder / "configs").symlink_to(ROOT / "configs")
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(folder)

    def follow(self, page):
        for language, text in blocks(page, "bash", "python", "yaml"):
            if language == "bash":
                lines = [part for line in text.splitlines() for part in line.split(" && ")]
                lines = [line for line in lines if not line.startswith(SET_UP) and line not in NOT_RUN]
                machines = [line for line in lines if line.startswith("MASTER_ADDR=")]
                for line in lines:
                    if line not in machines:
                        self.type(line)
                if machines:
                    self.start(*machines)
            elif found := re.match(r"# (\w+\.(py|yaml))\n", text):  # a file
                (self.folder / found[1]).write_text(text)
            else:
                names = {}
                exec(compile(text, page, "exec"), names)
                self.names |= names
                self.said[text] = self.capsys.readouterr().out

    def type(self, line):
        """In this process, since to start one takes seconds; but for several processes."""
        words = shlex.split(line)
        if words[:3] != ["python", "-m", "lit_models"] or "--trainer.devices" in words:
            return self.start(line)
        short = SHORT if "fit" in words and "help" not in line else []
        self.monkeypatch.setattr(sys, "argv", ["lit_models", *words[3:], *short])
        try:
            status = cli.main()
        except SystemExit as stop:  # after a help
            status = stop.code
        self.said[line], errors = self.capsys.readouterr()
        assert not status, f"{line}\n{errors}"

    def start(self, *lines):
        """In a shell each, all at a time."""
        for name, program in (("python", ""), ("torchrun", "-m torch.distributed.run")):
            (self.folder / "bin").mkdir(exist_ok=True)
            (self.folder / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
            (self.folder / "bin" / name).chmod(0o755)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment["PATH"] = f"{self.folder / 'bin'}:{environment['PATH']}"
        options = {"shell": True, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        processes = [subprocess.Popen(" ".join([line, *SHORT]), **options) for line in lines]
        texts = [process.communicate(timeout=300)[0].decode() for process in processes]
        assert [process.returncode for process in processes] == [0] * len(lines), texts
        self.said |= dict(zip(lines, texts, strict=True))


def digits(folder):
    (folder / "photos").mkdir()
    for number in range(3):
        Image.linear_gradient("L").resize((40, 50)).save(folder / "photos" / f"{number}.png")


def trained_on_digits(folder, trained):
    shutil.copytree(trained, folder / "logs" / "mnist")


def own_data(folder):
    digits(folder)
    for name, colour in (("cat", (200, 30, 30)), ("dog", (30, 30, 200))):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            shade = tuple(value + number for value in colour)
            Image.new("RGB", (60, 50), shade).save(folder / "pictures" / name / f"{number}.png")
    (folder / "new_pictures").symlink_to(folder / "pictures" / "cat")
    (folder / "digits").symlink_to(ROOT / "datamodules" / "files")
    rows = [f"{date(2024, 1, 1) + timedelta(day)},{100 + day % 7},{200 + day % 5},{day % 3}" for day in range(600)]
    (folder / "sales.csv").write_text("\n".join(["day,sales,visitors,price", *rows]))
    rows = [f"{day},{shop},{100 + day % 7}" for shop in ("north", "south") for day in range(100)]
    (folder / "shops.csv").write_text("\n".join(["day,shop,sales", *rows]))


def people(folder):
    pytest.importorskip("cv2", reason="needs the extra faces")
    for number in range(12):
        (folder / "people" / f"Person {number}").mkdir(parents=True)
        for variation in range(4):
            person(number, variation).save(folder / "people" / f"Person {number}" / f"{variation}.png")
    (folder / "photographs").mkdir()
    scene([(3, (40, 60, 200)), (7, (300, 200, 180))]).save(folder / "photographs" / "two.jpg")
    for name, number in (("one", 20), ("other", 21), ("ann", 22), ("ann_2", 22)):
        person(number).save(folder / f"{name}.jpg")


@pytest.fixture
def follow(tmp_path, monkeypatch, capsys):
    """Does all that a page says, and returns what it has left."""

    def follow(page):
        reader = Reader(tmp_path, monkeypatch, capsys)
        reader.follow(page)
        return reader

    return follow


def rows(path):
    return len(path.read_text().splitlines()) - 1


@pytest.mark.slow
def test_readme(follow):
    reader = follow("README.md")
    assert "test/accuracy" in reader.said["python -m lit_models test --config configs/mnist.yaml --ckpt_path last"]
    assert reader.names["trainer"].callback_metrics["test/accuracy"] > 0.97
    assert "[7, 2, 1, 0, 4]" in list(reader.said.values())[-1]


@pytest.mark.slow
def test_getting_started(tmp_path, follow):
    digits(tmp_path)
    reader = follow("docs/getting-started.md")
    assert rows(tmp_path / "predictions.csv") == 3
    assert "conv_dropout" in reader.said["python -m lit_models fit --model.help Net"]
    table = reader.said["python -m lit_models runs logs"].splitlines()[1:]
    assert [line.split()[0] for line in table] == ["Net/version_0", "mnist/version_0", "mnist/version_1"]


@pytest.mark.slow
def test_image_classifiers(follow):
    follow("docs/image-classifiers.md")


@pytest.mark.slow
def test_recurrent_networks(tmp_path, follow):
    follow("docs/recurrent-networks.md")
    assert rows(tmp_path / "forecast.csv") == 1500 + 84


@pytest.mark.slow
def test_your_own_data(tmp_path, follow):
    own_data(tmp_path)
    reader = follow("docs/your-own-data.md")
    assert rows(tmp_path / "labels.csv") == 20
    assert rows(tmp_path / "predictions.csv") == 3
    assert rows(tmp_path / "forecast.csv") == 90 + 7  # a season
    printed = [said for line, said in reader.said.items() if " test " in line and "room" in line]
    assert len(printed) == 2
    assert all("test/length      96" in said for said in printed)
    assert 0 <= reader.names["trainer"].callback_metrics["val/accuracy"] <= 1


@pytest.mark.slow
def test_attention(tmp_path, follow):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    own_data(tmp_path)
    (tmp_path / "poems.txt").write_text("Twinkle, twinkle, little bat!\nHow I wonder what you're at!\n" * 50)
    reader = follow("docs/attention.md")
    (written,) = (said for line, said in reader.said.items() if "Alice was" in line)
    assert written.startswith("Alice was")
    assert len(written.encode()) >= 200
    assert (tmp_path / "rose.txt").read_text().startswith("The rose")
    assert len(reader.names["tokens"]) == 56


@pytest.mark.slow
def test_faces(tmp_path, follow):
    people(tmp_path)
    reader = follow("docs/faces.md")
    first, ann, removed = (said for line, said in reader.said.items() if " enrol " in line)
    assert "12 people, 48 pictures; threshold" in first
    assert "13 people" in ann
    assert "12 people" in removed
    assert {path.name for path in (tmp_path / "recognised").iterdir()} == {"faces.csv", "two.faces.jpg"}
    assert rows(tmp_path / "recognised" / "faces.csv") == 2
    (verified,) = (said for line, said in reader.said.items() if " verify " in line)
    assert re.search(r"(the same person|different people): similarity -?[01]\.\d{3}, threshold", verified)


@pytest.mark.slow
def test_agents(tmp_path, follow):
    pytest.importorskip("moviepy", reason="needs the extra video")
    reader = follow("docs/agents.md")
    assert rows(tmp_path / "episodes.csv") == 100
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 5
    assert reader.names["action"] in (0, 1)
    assert reader.names["agent"].env_steps >= 10_000


@pytest.mark.slow
def test_resuming_and_machines(tmp_path, follow):
    follow("docs/resuming-and-machines.md")
    runs = sorted(path.name for path in (tmp_path / "logs" / "mnist").iterdir())
    assert runs == [f"version_{number}" for number in range(4)]  # one was resumed, and two machines are one run


@pytest.mark.slow
def test_export(tmp_path, trained, follow):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    trained_on_digits(tmp_path, trained)
    reader = follow("docs/export.md")
    assert reader.names["logits"].shape == (5, 10)
    assert isinstance(reader.names["model"], lit_models.Net)


@pytest.mark.slow
def test_python(tmp_path, trained, follow):
    trained_on_digits(tmp_path, trained)
    reader = follow("docs/python.md")
    assert reader.names["model"].num_classes == 3
    assert "train/accuracy" in reader.names["trainer"].callback_metrics
    assert not any(parameter.requires_grad for parameter in reader.names["model"].features.parameters())
    assert list(reader.names["rows"][0]) == ["label", *map(str, range(10))]


@pytest.mark.slow
def test_contributing(follow, monkeypatch):
    follow("docs/contributing.md")
    from mlp import MLP

    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(MLP(), datamodule=datamodules.MNISTDataModule())
    assert trainer.callback_metrics["val/accuracy"] > 0.9
    monkeypatch.delitem(sys.modules, "mlp")


def test_every_page_with_commands_or_examples_has_a_test():
    shown = {page for page in PAGES if commands(page) or blocks(page, "python", "yaml")}
    tested = {page for page in PAGES if f'follow("{page}")' in (ROOT / "tests" / "test_docs.py").read_text()}
    assert shown == tested


def test_blocks_of_other_kinds_hold_no_commands():
    for page in PAGES:
        others = [(kind, text) for kind, text in BLOCK.findall(PAGES[page]) if kind not in ("bash", "python", "yaml")]
        assert not [text for kind, text in others if kind or "python" in text]


def test_no_command_is_left_out_that_is_not_there():
    there = {part for page in PAGES for line in commands(page) for part in line.split(" && ")}
    assert set(NOT_RUN) <= there


def test_readme_is_one_page():
    assert len(PAGES["README.md"].splitlines()) <= 200


def test_readmes_two_commands_do_all_their_own_set_up():
    first, second = (line for _, text in blocks("README.md", "bash") for line in text.splitlines())
    for line in (first, second):
        assert line.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install -q torch torchvision -e ")
    assert commands("README.md")[0].startswith("python -m lit_models fit --config configs/mnist.yaml && ")


def test_ci_runs_readmes_second_command():
    second = [line for line in PAGES["README.md"].splitlines() if "python -m pytest" in line]
    assert second == [line for _, text in blocks("README.md", "bash") for line in text.splitlines()][1:]
    script = (ROOT / ".ci" / "run").read_text()
    assert "tests=$(grep 'python -m pytest' README.md)\n" in script
    assert 'bash -c "$tests"\n' in script


def slug(heading):
    """A heading's anchor on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", found.read_text()), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_every_page_is_linked_from_readme_and_every_picture_is_shown():
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", PAGES["README.md"])}
    assert {page for page in PAGES if page.startswith("docs/")} <= linked
    pictures = {path.name for end in ("png", "jpg") for path in ROOT.glob(f"docs/*.{end}")}
    assert pictures == {found for text in PAGES.values() for found in re.findall(r"!\[.*?\]\(.*?([\w-]+\.\w+)\)", text)}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    named = re.findall(r"`((?:lit_models|datamodules|rl|configs|tests|\.ci)/[^`\s]*)`", PAGES[page])
    assert [name for name in named if not list(ROOT.glob(name))] == []


def test_every_config_is_in_the_table():
    table = PAGES["docs/getting-started.md"].partition("## All configs")[2]
    assert sorted(re.findall(r"\.\./configs/(\w+)\.yaml\)", table)) == [
        path.stem for path in sorted(ROOT.glob("configs/*.yaml"))
    ]


@pytest.mark.parametrize("page", PAGES)
def test_options_that_are_named_exist(page):
    def keywords(kind):
        return set(inspect.signature(kind).parameters)

    public = [getattr(package, name) for package in (lit_models, rl, datamodules) for name in package.__all__]
    known = {"model": {"help"}, "data": {"help"}, "trainer": keywords(Trainer)}
    for kind in public:
        if isinstance(kind, type):
            known["data" if kind.__name__.endswith("DataModule") else "model"] |= keywords(kind)
    named = re.findall(r"--(model|data|trainer)\.(\w+)", PAGES[page])
    assert [(section, name) for section, name in named if name not in known[section]] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_measurement_is_typed(page):
    """All of them are written by `benchmarks.report`, between markers."""
    text = re.sub(r"^<!-- results: \w+ -->$.*?^<!-- /results -->$", "", prose(page), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"\d\.\d+ ?(?:%|m?s\b|MiB)|\([\d.,]+ to [\d.,]+\)", text) == []
