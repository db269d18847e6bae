import re

from conftest import ROOT


def test_the_import_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["trainer"].callback_metrics["test/accuracy"] > 0.97
    assert "[7, 2, 1, 0, 4]" in capsys.readouterr().out
