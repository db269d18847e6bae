import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from drawn import person, scene

README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHORT = "--trainer.max_epochs=1 --trainer.check_val_every_n_epoch=1"
SHORT += " --trainer.limit_train_batches=20 --trainer.limit_val_batches=2"


def run(example, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    return names


@pytest.mark.slow
def test_the_agents_example_runs_as_it_stands(tmp_path, monkeypatch):
    (example,) = (example for example in EXAMPLES if "DQN" in example)
    names = run(example, tmp_path, monkeypatch)
    assert names["action"] in (0, 1)
    assert names["agent"].env_steps >= 10_000


@pytest.mark.slow
def test_the_models_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    (example,) = (example for example in EXAMPLES if "MNISTDataModule" in example)
    names = run(example, tmp_path, monkeypatch)
    assert names["trainer"].callback_metrics["test/accuracy"] > 0.97
    assert "[7, 2, 1, 0, 4]" in capsys.readouterr().out


def commands(section):
    text = README.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if not line.startswith("pip ")]


@pytest.fixture
def typed(tmp_path):
    """Runs lines as typed into a shell, together, and returns what each wrote; only a fit is made a short one."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "bin").mkdir()
    for name, program in (("python", ""), ("torchrun", "-m torch.distributed.run")):
        script = (
            f'#!/bin/sh\ncase "$*" in *" fit "*) set -- "$@" {SHORT};; esac\nexec {sys.executable} {program} "$@"\n'
        )
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{tmp_path / 'bin'}:{environment['PATH']}"

    def run_together(*lines):
        processes = [
            subprocess.Popen(
                line, shell=True, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            for line in lines
        ]
        texts = [process.communicate(timeout=300)[0].decode() for process in processes]
        assert [process.returncode for process in processes] == [0] * len(lines), texts
        return texts

    return run_together


@pytest.mark.slow
def test_the_commands_for_faces_run_as_they_stand(tmp_path, typed):
    pytest.importorskip("cv2", reason="needs the extra faces")
    for number in range(12):
        folder = tmp_path / "people" / f"Person {number}"
        folder.mkdir(parents=True)
        for variation in range(4):
            person(number, variation).save(folder / f"{variation}.png")
    (tmp_path / "photographs").mkdir()
    scene([(3, (40, 60, 200)), (7, (300, 200, 180))]).save(tmp_path / "photographs" / "two.jpg")
    for name, number in (("one.jpg", 20), ("other.jpg", 21)):
        person(number).save(tmp_path / name)
    fit, enrol, identify, verify = commands("Faces")
    typed(fit)
    (said,) = typed(enrol)
    assert "12 people, 48 pictures; threshold" in said
    typed(identify)
    assert {path.name for path in (tmp_path / "recognised").iterdir()} == {"faces.csv", "two.faces.jpg"}
    assert len((tmp_path / "recognised" / "faces.csv").read_text().splitlines()) == 1 + 2
    (said,) = typed(verify)
    assert re.search(r"(the same person|different people): similarity -?[01]\.\d{3}, threshold", said)


@pytest.mark.slow
def test_the_commands_of_the_trainer_run_as_they_stand(tmp_path, monkeypatch, typed):
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    (going_on,) = commands("Stopped, and going on")
    typed(going_on)
    assert (tmp_path / "logs" / "mnist" / "version_0" / "checkpoints" / "last.ckpt").exists()
    one_machine, torchrun, *two_machines = commands("Precision, processes, machines")
    typed(one_machine)
    typed(torchrun)
    assert len(two_machines) == 2
    typed(*two_machines)
    (listing,) = commands("What a run leaves")
    (table,) = typed(listing)
    assert [line.split()[0] for line in table.splitlines()[1:]] == [f"mnist/version_{number}" for number in range(4)]
    (export,) = commands("Export")
    typed(export)
    (example,) = (example for example in EXAMPLES if "onnxruntime" in example)
    names = run(example, tmp_path, monkeypatch)
    assert names["logits"].shape == (5, 10)
    (example,) = (example for example in EXAMPLES if "FreezeBackbone" in example)
    names = run(example, tmp_path, monkeypatch)
    assert names["model"].num_classes == 3
