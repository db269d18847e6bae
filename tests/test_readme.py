import re

from conftest import ROOT

EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def run(example, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    return names


def test_the_agents_example_runs_as_it_stands(tmp_path, monkeypatch):
    (example,) = (example for example in EXAMPLES if "DQN" in example)
    names = run(example, tmp_path, monkeypatch)
    assert names["action"] in (0, 1)
    assert names["agent"].env_steps >= 10_000


def test_the_models_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    (example,) = (example for example in EXAMPLES if "MNISTDataModule" in example)
    names = run(example, tmp_path, monkeypatch)
    assert names["trainer"].callback_metrics["test/accuracy"] > 0.97
    assert "[7, 2, 1, 0, 4]" in capsys.readouterr().out
