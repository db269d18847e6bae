"""The tables of README and docs are what the results files say."""

import argparse
import json
import re
import shutil
import sys

import lightning
import numpy as np
import pytest
from conftest import ROOT

from benchmarks import common, report, rnn

RESULTS = ROOT / "benchmarks" / "results"
# `benchmarks.gpu` writes a file of its own kind.
FILES = sorted(path for path in RESULTS.glob("*.json") if path.name != "gpu.json")


@pytest.fixture
def results(tmp_path):
    """A copy of the results files."""
    return shutil.copytree(RESULTS, tmp_path / "results")


@pytest.fixture
def page(tmp_path, results):
    """A page with every table, filled from the copy."""
    page = tmp_path / "page.md"
    page.write_text("".join(f"# {name}\n\n<!-- results: {name} -->\n<!-- /results -->\n\n" for name in report.TABLES))
    assert report.main([f"--results={results}", str(page)]) == 0
    return page


def checked(page, results, capsys):
    """The exit status and the lines of a check, which changes nothing."""
    before = page.read_text()
    status = report.main(["--check", f"--results={results}", str(page)])
    assert page.read_text() == before
    return status, capsys.readouterr().err.splitlines()


def change(results, name, part, change):
    path = results / f"{name}.json"
    content = json.loads(path.read_text())
    change(content[part])
    path.write_text(json.dumps(content))


def test_the_pages_are_what_the_files_say(capsys):
    assert report.main(["--check"]) == 0, capsys.readouterr().err


def test_a_filled_page_passes_and_its_links_lead_somewhere(page, results, capsys):
    assert checked(page, results, capsys) == (0, [])
    text = page.read_text()
    assert text.count("\n| --- |") == len(report.TABLES) + 2  # two have two parts
    assert text.count("\n- `") >= len(report.TABLES)
    links = [link for link in re.findall(r"\]\((.*?)\)", text) if not link.startswith("https:")]
    assert links
    assert all((page.parent / link).exists() for link in links)


@pytest.mark.parametrize(
    ("name", "part", "keys", "tables"),
    [
        ("mnist", "ours", ["test_accuracy"], "overview, mnist"),
        ("mnist", "trainer", ["epoch_over_plain_loop"], "mnist"),
        ("cnn", "cnn_mnist", ["seconds"], "overview, classifiers"),
        ("cnn", "loading", ["cnn_folder"], "loading"),
        ("rnn", "mackey_glass", ["nrmse", "persistence"], "mackey_glass"),
        ("series", "real", ["series", "nile", "rnn"], "series"),
        ("series", "real", ["series", "nile", "coverage"], "series"),
        ("series", "neuralforecast", ["series", "nile", "gru"], "series"),
        ("agents", "stable_baselines3_dqn_cartpole", ["final_return"], "agents"),
        ("agents", "ppo_cartpole", ["final_return"], "overview, agents"),
        ("agents", "raw_ppo_cartpole", ["seconds"], "agents"),
        ("face", "by_person", ["eer", "face_embedder"], "overview, orl"),
        ("face", "detection", ["by_tilt"], "detection"),
        ("face", "identify", ["10000_people", "milliseconds"], "recognition"),
        ("resume", "kills", ["equal"], "resume"),
        ("fuzz", "series", ["refused"], "fuzz"),
        ("soak", "dqn_cartpole", ["mib_at_the_end"], "costs"),
        ("digits", "ways", ["right", "tilted"], "digits"),
    ],
)
def test_a_changed_figure_makes_the_check_fail(name, part, keys, tables, page, results, capsys):
    def doubled(figure):
        if isinstance(figure, dict):
            return {key: doubled(value) for key, value in figure.items()}
        if isinstance(figure, list):
            return [doubled(value) for value in figure]
        return figure and 2 * figure

    def double(content):
        *outer, last = keys
        figures = content["figures"]
        for key in outer:
            figures = figures[key]
        figures[last] = doubled(figures[last])

    change(results, name, part, double)
    said = f"{page}: {tables}: not what the results files say; run python -m benchmarks.report"
    assert checked(page, results, capsys) == (1, [said])


def test_another_machine_makes_the_check_fail(page, results, capsys):
    change(results, "resume", "damages", lambda content: content["measured"].update(processor="Zilog Z80"))
    status, (line,) = checked(page, results, capsys)
    assert status == 1
    assert line.startswith(f"{page}: resume: ")
    assert report.main([f"--results={results}", str(page)]) == 0
    assert "Zilog Z80 with" in page.read_text()


def test_a_missing_file_or_part_names_the_command_to_run(page, results, capsys):
    (results / "resume.json").unlink()
    said = f"error: {page}: table resume: results/resume.json has no part kills: run python -m benchmarks.resume"
    assert checked(page, results, capsys) == (1, [said])
    shutil.copy(RESULTS / "resume.json", results)
    content = json.loads((results / "agents.json").read_text())
    del content["dqn_acrobot"]
    (results / "agents.json").write_text(json.dumps(content))
    status, (line,) = checked(page, results, capsys)
    assert status == 1
    assert line.endswith("run python -m benchmarks.agents dqn_acrobot")
    content["dqn_acrobot"] = {"measured": content["dqn_cartpole"]["measured"], "figures": {"seeds": [0]}}
    (results / "agents.json").write_text(json.dumps(content))
    said = f"error: {page}: table agents: a results file has no figure 'final_return': run its benchmark again"
    assert checked(page, results, capsys) == (1, [said])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- results: mnits -->\n<!-- /results -->\n", "there is no table mnits: there are overview, mnist,"),
        ("<!-- results: mnist -->\nno end\n", "ends with <!-- /results -->"),
        ("<!-- results: mnist -->\n<!-- results: orl -->\n<!-- /results -->\n", "ends with <!-- /results -->"),
        ("<!-- /results -->\n", "ends with <!-- /results -->"),
    ],
)
def test_a_wrong_marker_is_one_line(text, said, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(text)
    status, (line,) = checked(page, RESULTS, capsys)
    assert status == 1
    assert line.startswith(f"error: {page}: ")
    assert said in line


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_figure_says_where_it_comes_from(path):
    text = path.read_text()
    assert not re.search(r"[\"'=\s][/~]\w", text), "a path of the machine"
    for part in json.loads(text).values():
        assert part.keys() == {"measured", "figures"}
        measured = part["measured"]
        assert set(measured) == {"command", "date", "commit", "processor", "cores", "threads", "versions", "note"}
        assert measured["command"].startswith("python -m ")
        if measured["commit"]:  # but for figures from before there were files
            assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", measured["commit"])
            assert re.fullmatch(r"\d{4}-\d\d-\d\d", measured["date"])
            assert measured["processor"]
            assert measured["cores"] >= 1
            assert measured["threads"] >= 1
            assert {"python", "torch", "torchvision", "lightning"} <= measured["versions"].keys()


def test_spread_of_seeds_and_of_what_is_known_of_them():
    assert report.spread([1.0, 2.0, 6.0], report.number(1), " s") == "3.0 s (1.0 to 6.0)"
    assert report.median([1.0, 2.0, 6.0], report.number(1), " s") == "2.0 s (1.0 to 6.0)"
    assert report.median([None, 4.0], report.number(0)) == "4, 1 of 2 seeds"
    assert report.spread([None, None], report.number(0)) == "never"
    assert report.spread([0.5], report.percent(2), "%") == "50.00%"
    assert report.spread({"mean": 3.0, "min": 1.0, "max": 6.0, "seeds": 3}, report.number(0)) == "3 (1 to 6)"
    assert report.spread({"min": 1.0, "max": 6.0, "seeds": 3}, report.number(0), " s") == "1 to 6 s"
    assert report.spread([1.22e-4], report.scientific) == "1.22e-4"


def test_a_benchmark_writes_its_part_and_keeps_the_others(results):
    path = results / "rnn.json"
    before = json.loads(path.read_text())
    options = argparse.Namespace(output=path)
    options.measured = common.provenance("python -m benchmarks.rnn --only loading", 1, "a test", "gymnasium", "no-such")
    common.write_results(options, loading={"rnn_mnist": [1, 1 / 3, None], "rnn_mackey_glass": [np.float32(0.5)]})
    after = json.loads(path.read_text())
    written = after.pop("loading")
    assert after == {name: part for name, part in before.items() if name != "loading"}
    assert written["figures"] == {"rnn_mnist": [1, 0.333333, None], "rnn_mackey_glass": [0.5]}
    measured = written["measured"]
    assert measured.keys() == before["loading"]["measured"].keys()
    assert measured["versions"].keys() == {"python", "torch", "torchvision", "lightning", "gymnasium"}
    assert measured["versions"]["lightning"] == lightning.__version__
    assert measured["commit"] == common.commit()
    assert "[1, 0.333333, null]\n" in path.read_text().replace(",\n", "\n")  # a line a figure


def test_a_command_is_kept_without_folders_of_the_machine():
    arguments = ["--root=/somewhere/else/orl", "--cifar10", "/data/cifar", "--note=a b", "--root", "../orl", "--x=a b"]
    assert common.typed("program", arguments) == "program --root=orl --cifar10 cifar --root ../orl '--x=a b'"


def test_a_file_of_another_kind_is_not_overwritten(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.json"
    path.write_text('{"some": "thing"}')
    monkeypatch.setattr(sys, "argv", ["rnn", f"--output={path}"])
    with pytest.raises(SystemExit) as stop:
        rnn.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("remove it, or give another one with --output")
    assert path.read_text() == '{"some": "thing"}'
