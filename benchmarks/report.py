"""Fills the tables of README.md and docs/*.md from the results files of the benchmarks.

A table stands between two lines, `<!-- results: NAME -->` and `<!-- /results -->`; whatever is between them is
replaced. Below each table is said where its figures come from.
"""

import argparse
import json
import operator
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"^(<!-- *results: *(\S+) *-->\n)(.*?)^(<!-- */results *-->)$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"^<!-- *(?:results: *(\S+)|/results) *-->$", re.MULTILINE)

# Configs of agents with their environments and the return that counts as solved, and the classes of stable-baselines3
# that some are beside.
AGENTS = {
    "dqn_cartpole": ("CartPole", 475),
    "ppo_cartpole": ("CartPole", 475),
    "dqn_acrobot": ("Acrobot", -100),
    "ppo_acrobot": ("Acrobot", -100),
    "dqn_lunarlander": ("LunarLander", 200),
    "ppo_lunarlander": ("LunarLander", 200),
    "dqn_mountaincar": ("MountainCar", -110),
    "dqn_frozenlake": ("FrozenLake", 0.7),
    "ppo_pendulum": ("Pendulum", -200),
    "ddpg_pendulum": ("Pendulum", -200),
    "td3_pendulum": ("Pendulum", -200),
    "sac_pendulum": ("Pendulum", -200),
    "sac_invertedpendulum": ("InvertedPendulum", 1000),
}
BESIDE = {"dqn_cartpole": "DQN", "ppo_cartpole": "PPO", "ddpg_pendulum": "DDPG", "sac_pendulum": "SAC"}

CHO = "[Cho et al. 2014](https://arxiv.org/abs/1406.1078)"
PAPERS = {
    "Net": "[LeCun et al. 1998](https://doi.org/10.1109/5.726791)",
    "CNN": "[Krizhevsky 2014](https://arxiv.org/abs/1404.5997)",
    "RNNClassifier": CHO,
    "RNN": CHO,
    "FaceEmbedder": "[Wang et al. 2018](https://arxiv.org/abs/1801.09414)",
    "DQN": "[Mnih et al. 2015](https://doi.org/10.1038/nature14236)",
    "PPO": "[Schulman et al. 2017](https://arxiv.org/abs/1707.06347)",
    "DDPG": "[Lillicrap et al. 2016](https://arxiv.org/abs/1509.02971)",
    "SAC": "[Haarnoja et al. 2018](https://arxiv.org/abs/1812.05905)",
}

# A value of every seed or pair, null where there is none; of older runs only mean, min, max and number of seeds.
Figure = list[float | None] | dict[str, float | None]


@dataclass
class Results:
    """The results files, as seen from a table.

    Args:
        table: Its name.
        folder: Of the files.
        page: Folder of the page, which links start from.
    """

    table: str
    folder: Path
    page: Path
    used: dict[tuple[str, str], None] = field(default_factory=dict)

    def part(self, name: str, part: str, options: str = "") -> dict[str, Any]:
        """The figures of a part of a file, which is then among the table's sources.

        Args:
            name: Of the file, and of its benchmark.
            part: Of the file.
            options: Of the benchmark, if only these measure the part.

        Raises:
            ValueError: There is no such part.
        """
        try:
            figures = self.read(name)[part]["figures"]
        except (FileNotFoundError, KeyError):
            raise ValueError(
                f"table {self.table}: {self.folder.name}/{name}.json has no part {part}: "
                f"run python -m benchmarks.{name}{options}"
            ) from None
        self.used[name, part] = None
        return figures

    def read(self, name: str) -> dict[str, Any]:
        """The parts of a file."""
        path = self.folder / f"{name}.json"
        try:
            return json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.folder.name}/{name}.json is damaged ({error}): restore it") from None

    def link(self, path: str, text: str | None = None) -> str:
        """A link from the page to a file of the project, with its path as text, if there is no other."""
        return f"[`{text or path}`]({Path(os.path.relpath(ROOT / path, self.page)).as_posix()})"

    def sources(self) -> Iterator[str]:
        """Where the figures come from, a line for all parts of a file that were measured together."""
        together: dict[tuple[str, str], list[str]] = {}
        for name, part in self.used:
            content = self.read(name)[part]
            said = part + seeds(content["figures"].get("seeds"))
            together.setdefault((name, json.dumps(content["measured"])), []).append(said)
        lines, versions = [], []
        for (name, text), parts in together.items():
            measured = json.loads(text)
            lines.append(f"- `{name}.json` ({'; '.join(parts)}): {origin(measured)}")
            versions.append(", ".join(f"{library} {version}" for library, version in measured["versions"].items()))
        if len(lines) > 1 and len(set(versions)) == 1:
            yield from (f"{line}." for line in lines)
            yield f"- All with {versions[0] or 'versions that were not recorded'}."
        else:
            yield from (f"{line}; {of or 'versions not recorded'}." for line, of in zip(lines, versions, strict=True))


def seeds(of: list[int] | int | None) -> str:
    """Seeds as text, after the name of a part; of older runs only their number is known."""
    if of is None:
        return ""
    if isinstance(of, int):
        return f", {of} seeds"
    return f", seed {of[0]}" if len(of) == 1 else f", seeds {of[0]} to {of[-1]}"


def origin(measured: dict[str, Any]) -> str:
    """Where figures come from: command, machine, note, date and commit."""
    threads = "one thread" if measured["threads"] == 1 else f"{measured['threads']} threads"
    machine = f"{measured['processor']} with {measured['cores']} cores"
    said = [f"`{measured['command']}`", threads, machine if measured["processor"] else "processor not recorded"]
    said += [measured["note"]] if measured["note"] else []
    said.append(measured["date"] or "date not recorded")
    commit, _, dirty = (measured["commit"] or "not recorded").partition("-")
    said.append(f"commit {commit[:12]}{' with changes' if dirty else ''}")
    return ", ".join(said)


def known(figure: Figure) -> dict[str, Any]:
    """`mean`, `median`, `min` and `max` of a figure, and `count`, how many values there are, `of` how many."""
    if isinstance(figure, dict):
        unknown = dict.fromkeys(("mean", "median", "min", "max"))
        return unknown | {"count": figure["seeds"], "of": figure["seeds"]} | figure
    values = [value for value in figure if value is not None]
    found: dict[str, Any] = {"count": len(values), "of": len(figure)}
    if values:
        found |= {"mean": statistics.mean(values), "median": statistics.median(values)}
        found |= {"min": min(values), "max": max(values)}
    return found


def spread(figure: Figure | None, text: Callable[[float], str], unit: str = "", middle: str = "mean") -> str:
    """Mean or median, least and greatest, as text; how many of the seeds got there, if not all."""
    if figure is None:
        return "not recorded"
    found = known(figure)
    if not found["count"]:
        return "never"
    centre, least, greatest = ("" if found[one] is None else text(found[one]) for one in (middle, "min", "max"))
    reach = "" if least == greatest else f"{least} to {greatest}"
    said = f"{centre}{unit} ({reach})" if centre and reach else f"{centre or reach}{unit}"
    return said if found["count"] == found["of"] else f"{said}, {found['count']} of {found['of']} seeds"


def mean(figure: Figure, text: Callable[[float], str]) -> str:
    """The mean alone, as text."""
    return text(known(figure)["mean"])


def median(figure: Figure | None, text: Callable[[float], str], unit: str = "") -> str:
    """Median, least and greatest, as text."""
    return spread(figure, text, unit, "median")


def number(digits: int) -> Callable[[float], str]:
    """Values as text with so many digits after the point."""
    return lambda value: f"{value:,.{digits}f}"


def percent(digits: int) -> Callable[[float], str]:
    """Shares as percentages, without the sign."""
    return lambda value: f"{100 * value:.{digits}f}"


def scientific(value: float) -> str:
    """1.22e-4, or 1.65."""
    return f"{value:.2f}" if value >= 1 else f"{value:.2e}".replace("e-0", "e-")


def rows(header: Sequence[str], *lines: Sequence[str]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines)]


def overview(results: Results) -> list[str]:
    """Every model with its paper, and what its config reaches."""
    net, cnn, by_rows = results.part("mnist", "ours"), results.part("cnn", "cnn_mnist"), results.part("rnn", "rows")
    series = results.part("rnn", "mackey_glass")
    gru = {"seconds": series["seconds"]["rnn"]}
    dqn, ppo, ddpg, sac = (
        results.part("agents", name, f" {name}")
        for name in ("dqn_cartpole", "ppo_cartpole", "ddpg_pendulum", "sac_pendulum")
    )
    known_people, strangers = results.part("face", "by_picture"), results.part("face", "by_person")
    free = mean(series["nrmse_free"]["rnn"], scientific)
    error = mean(known_people["identification_error"]["face_embedder"], percent(2))
    eer = mean(strangers["eer"]["face_embedder"], percent(2))

    def accuracy(figures: dict) -> str:
        return f"{mean(figures['test_accuracy'], percent(2))}% of MNIST's test images"

    def final(figures: dict) -> str:
        return f"return {mean(figures['final_return'], number(1))}"

    models = [
        ("lit_models/net.py", "mnist", net, accuracy(net)),
        ("lit_models/cnn.py", "cnn_mnist", cnn, accuracy(cnn)),
        ("lit_models/rnn_classifier.py", "rnn_mnist", by_rows, accuracy(by_rows)),
        ("lit_models/rnn.py", "rnn_mackey_glass", gru, f"NRMSE {free} on Mackey-Glass, 84 steps ahead"),
        (
            "lit_models/faces/face_embedder.py",
            "face_orl",
            known_people,
            f"ORL faces: {error}% identified wrongly, EER {eer}% on strangers",
        ),
        ("rl/dqn.py", "dqn_cartpole", dqn, f"{final(dqn)} of 500 on CartPole"),
        ("rl/ppo.py", "ppo_cartpole", ppo, f"{final(ppo)} of 500 on CartPole"),
        ("rl/ddpg.py", "ddpg_pendulum", ddpg, f"{final(ddpg)} on Pendulum"),
        ("rl/sac.py", "sac_pendulum", sac, f"{final(sac)} on Pendulum"),
    ]
    lines = [
        [
            f"`{name}`",
            paper,
            results.link(file, Path(file).name),
            results.link(f"configs/{config}.yaml", f"{config}.yaml"),
            result,
            f"{mean(figures['seconds'], number(0))} s",
        ]
        for (name, paper), (file, config, figures, result) in zip(PAPERS.items(), models, strict=True)
    ]
    return rows(["model", "paper", "file", "config", "result", "time"], *lines)


def mnist(results: Results) -> list[str]:
    """Ours against the article's script."""
    ours, article = results.part("mnist", "ours"), results.part("mnist", "article")
    ratios = results.part("mnist", "trainer")["epoch_over_plain_loop"]

    def row(method: str, figures: dict, share: str) -> list[str]:
        accuracy = spread(figures["test_accuracy"], percent(2), "%")
        seconds, to_99 = (spread(figures[name], number(1), " s") for name in ("seconds", "seconds_to_99"))
        return [method, accuracy, seconds, share, to_99]

    return [
        *rows(
            ["", "test accuracy", "training", "share of the article's time", "to 99%"],
            row(results.link("configs/mnist.yaml"), ours, spread(ours["seconds_over_article"], number(3))),
            row("the article's script", article, ""),
        ),
        "",
        "With the article's own settings and everything on, an epoch in the Trainer takes "
        f"{median(ratios, number(2))} times as long as in a plain loop over tensors in memory: median of "
        f"{known(ratios)['of']} pairs of epochs.",
    ]


def digits(results: Results) -> list[str]:
    """One's own digits, drawn in many ways."""
    ways, pages, own = (results.part("digits", part) for part in ("ways", "pages", "own"))
    lines = [
        [way, spread(right, percent(0), "%"), spread(ways["ms"][way], number(0), " ms")]
        for way, right in ways["right"].items()
    ]
    lines += [[f"pages: {kind}", spread(right, percent(0), "%"), ""] for kind, right in pages["right"].items()]
    return [
        *rows(["", f"right, of {ways['digits']}", "reading one"], *lines),
        "",
        f"MNIST's own test pictures: {percent(2)(own['accuracy'])}%.",
    ]


def classifiers(results: Results) -> list[str]:
    """The other classifiers on MNIST."""
    cnn, gru = results.part("cnn", "cnn_mnist"), results.part("rnn", "rows")

    def row(name: str, config: str, figures: dict) -> list[str]:
        accuracy = spread(figures["test_accuracy"], percent(2), "%")
        seconds = spread(figures["seconds"], number(0), " s")
        return [f"{name}, {figures['parameters']:,} parameters", results.link(config), accuracy, seconds]

    return rows(
        ["model", "config", "test accuracy on MNIST", "training"],
        row("`CNN`", "configs/cnn_mnist.yaml", cnn),
        row("`RNNClassifier`, a GRU over rows", "configs/rnn_mnist.yaml", gru),
    )


def loading(results: Results) -> list[str]:
    """Whether loading holds training up."""
    shares = results.part("cnn", "loading") | results.part("rnn", "loading")
    said = {
        "cnn_mnist": "`CNN` on MNIST",
        "cnn_folder": "`CNN` on a folder of 256 photographs",
        "rnn_mnist": "GRU over rows of MNIST",
        "rnn_mackey_glass": "GRU on Mackey-Glass",
    }
    lines = [
        [text, results.link(f"configs/{name}.yaml"), median(shares[name], number(3))] for name, text in said.items()
    ]
    return rows(["training", "config", "speed with the real loader, over that on one batch in memory (median)"], *lines)


def mackey_glass(results: Results) -> list[str]:
    """The forecaster beside older methods."""
    found = results.part("rnn", "mackey_glass")
    methods = {
        "persistence": "persistence: the last value",
        "linear_autoregression": "linear autoregression of the same window",
        "echo_state_network_100": "echo state network, 100 units",
        "rnn": f"`RNN`, GRU of 100 units, {results.link('configs/rnn_mackey_glass.yaml')}",
        "echo_state_network_400": "echo state network, 400 units",
        "transformer": f"`TransformerForecaster`, {results.link('configs/transformer_mackey_glass.yaml')}",
    }
    lines = [
        [
            text,
            spread(found["nrmse"][name], scientific),
            spread(found["nrmse_free"][name], scientific),
            spread(found["seconds"][name], number(0), " s") if name in found["seconds"] else "",
        ]
        for name, text in methods.items()
    ]
    return rows(["method", "NRMSE one step ahead", "NRMSE running free, 84 steps", "training"], *lines)


def series(results: Results) -> list[str]:
    """Forecasts of real series beside simple ones."""
    ours, theirs = (results.part("series", part)["series"] for part in ("real", "neuralforecast"))
    found = {name: one | {"neuralforecast": theirs[name]["gru"]} for name, one in ours.items()}
    methods = {
        "persistence": "persistence",
        "drift": "drift",
        "seasonal_naive": "seasonal naive",
        "smoothing_level": "exponential smoothing of the level",
        "smoothing_add": "exponential smoothing, additive season",
        "smoothing_mul": "exponential smoothing, multiplicative season",
        "neuralforecast": "neuralforecast's GRU, two layers of 200 units",
        "rnn": f"`RNN`, GRU of 16 units, {results.link('configs/rnn_csv.yaml')}",
        "rnn_quantiles": "the same with `quantiles: [0.1, 0.5, 0.9]`, by its median",
    }

    def cell(figure: Figure | float | None) -> str:
        if figure is None:
            return ""
        return spread(figure, number(2)) if isinstance(figure, list) else number(2)(figure)

    header = [f"{name}: {one['rows']:,} rows, {one['horizon']} ahead" for name, one in found.items()]
    lines = [[text, *(cell(one.get(name)) for one in found.values())] for name, text in methods.items()]
    inside = [one["coverage"] for one in ours.values()]
    forecast_rows = [one["windows"] * one["horizon"] for one in ours.values()]

    def together(weights: Sequence[int]) -> list[float]:
        """The mean over the series, for each seed."""
        runs = zip(*inside, strict=True)
        return [sum(map(operator.mul, weights, run)) / sum(weights) for run in runs]

    shares = [*inside, together([1] * len(inside)), together(forecast_rows)]

    def takes(series: dict[str, dict]) -> str:
        return ", ".join(f"{name} {spread(one['seconds'], number(0), ' s')}" for name, one in series.items())

    return [
        *rows(["method", *header], *lines),
        "",
        *rows(
            ["interval of 80%", *ours, "mean of the series", "all forecast rows"],
            ["share of the truth inside", *(spread(share, percent(0), "%") for share in shares)],
        ),
        "",
        f"Training takes: {takes(ours)}; of neuralforecast's GRU, with its forecasts: {takes(theirs)}.",
    ]


def agents(results: Results) -> list[str]:
    """The agents, and stable-baselines3's."""
    lines = []
    for name, (environment, target) in AGENTS.items():
        found = results.part("agents", name, f" {name}")
        lines.append([environment, results.link(f"configs/{name}.yaml"), *learnt(found, target)])
        if name in BESIDE:
            peer = results.part("agents", f"stable_baselines3_{name}", f" {name}")
            lines.append(["", f"stable-baselines3's {BESIDE[name]}", *learnt(peer, target)])
    cheetah, peer = (results.part("agents", f"{who}sac_halfcheetah") for who in ("", "stable_baselines3_"))
    speed, other = (spread(one["gradient_steps_per_second"], number(0)) for one in (cheetah, peer))
    shares = []
    for name, algorithm in (("ppo_cartpole", "PPO on CartPole"), ("ddpg_pendulum", "DDPG on Pendulum")):
        found = results.part("agents", f"raw_{name}", f" {name} --raw")
        ratios = list(map(operator.truediv, found["seconds"], found["seconds_of_a_plain_loop"]))
        shares.append(f"{algorithm}: {median(ratios, number(2))}")
    return [
        *rows(
            [
                "environment",
                "agent",
                "steps",
                "steps a second",
                "to the target (median)",
                "return at the end",
                "in all",
            ],
            *lines,
        ),
        "",
        f"SAC on HalfCheetah, with networks of 256 and 256 units, takes {speed} environment and gradient steps a "
        f"second ({results.link('configs/sac_halfcheetah.yaml')}); stable-baselines3's {other}.",
        "",
        f"Everything on, over a plain loop with the same evaluations (median): {'; '.join(shares)}.",
    ]


def learnt(found: dict[str, Any], target: float) -> list[str]:
    """What a run of an agent takes, and reaches."""
    final = found["final_return"]
    digits = 3 if abs(target) < 1 else 1
    there = sum(value >= target for value in final)
    return [
        spread(found["env_steps"], number(0)),
        spread(found["env_steps_per_second"], number(0)),
        median(found.get("seconds_to_target"), number(1), " s"),
        f"{spread(final, number(digits))}; {there} of {len(final)} at {target:g} or more",
        spread(found["seconds"], number(0), " s"),
    ]


def orl(results: Results) -> list[str]:
    """Face recognition on the ORL faces."""
    picture, person = results.part("face", "by_picture"), results.part("face", "by_person")
    methods = {
        "face_embedder": f"`FaceEmbedder`, {results.link('configs/face_orl.yaml')}",
        "eigenfaces": "eigenfaces (Turk and Pentland, 1991)",
        "linear_svm": "linear SVM on pixels",
    }
    columns = [(picture["identification_error"], 2), (person["eer"], 2), (person["tar_at_far_1e-2"], 1)]
    lines = [
        [text, *(spread(found[name], percent(digits), "%") if name in found else "" for found, digits in columns)]
        for name, text in methods.items()
    ]
    lawrence = "[Lawrence et al., 1997](https://doi.org/10.1109/72.554195), a convolutional network, as published"
    header = ["", "by picture: identification error", "by person: EER", "by person: TAR at FAR 1%"]
    seconds = spread(picture["seconds"], number(1), " s")
    return [*rows(header, *lines, [lawrence, "3.8%", "", ""]), "", f"A split by picture trains for {seconds}."]


def detection(results: Results) -> list[str]:
    """Which faces are found, by their width and by their tilt."""
    found = results.part("face", "detection", " --only detection")
    (longer, shorter), portraits = found["picture"], found["portraits"]
    parts = {name: (found[name], found[f"eyes_{name}"]) for name in ("by_width", "by_tilt")}

    def share(value: float) -> str:
        return f"{percent(1)(value)}%"

    by_width = [
        [f"{width} pixels", share(int(width) / longer), *(share(part[width]) for part in parts["by_width"])]
        for width in found["by_width"]
    ]
    by_tilt = [
        [f"{tilt} degrees", *(share((part[tilt] + part[str(-int(tilt))]) / 2) for part in parts["by_tilt"])]
        for tilt in found["by_tilt"]
        if int(tilt) >= 0
    ]
    width, tilted = f"width of the face in {longer}x{shorter} pixels", found["tilted_width"]
    return [
        *rows([width, "of the longer side", f"found, of {portraits}", "with both eyes"], *by_width),
        "",
        *rows([f"tilt to either side, {tilted} pixels wide", "found", "with both eyes"], *by_tilt),
    ]


def recognition(results: Results) -> list[str]:
    """The time that `identify` takes."""
    found = results.part("face", "identify")
    lines = []
    for people in (10, 10_000):
        times = found[f"{people}_people"]
        photograph, comparing = times["milliseconds"], times["milliseconds_comparing"]
        lines.append([f"{people:,}", median(photograph, number(0), " ms"), median(comparing, number(2), " ms")])
    return rows(["people in the gallery", "`identify`, a photograph (median)", "of it comparing (median)"], *lines)


def resume(results: Results) -> list[str]:
    """Runs that are killed, and checkpoints that are damaged."""
    kills, damages = results.part("resume", "kills"), results.part("resume", "damages")
    return rows(
        ["", ""],
        [
            f"killed at a random moment and resumed, {kills['configs']} configs in turn",
            f"{kills['equal']} of {kills['killed']} ended equal to the bit: weights, optimizer and curves",
        ],
        [
            "damaged: empty, cut, bits flipped, another class, code inside and more",
            f"{damages['clear']} of {damages['damaged']} refused or passed over, in one clear line",
        ],
    )


def fuzz(results: Results) -> list[str]:
    """Input of many kinds, most of it wrong."""
    kinds = {"commands": "command lines", "series": "CSV files", "folders": "folders of pictures"}
    lines = []
    for part, kind in kinds.items():
        found = results.part("fuzz", part)
        counts = [f"{found[name]:,}" for name in ("inputs", "success", "refused", "faults")]
        lines.append([f"{kind}, seed {found['seed']}", *counts])
    return rows(["", "tried", "success, and read right", "one line, status 1 or 2", "anything else"], *lines)


def costs(results: Results) -> list[str]:
    """What checkpoints, start-up, compiling and long runs cost."""
    checkpoint, compiled = results.part("trainer", "checkpoint"), results.part("trainer", "compile")
    startup = results.part("trainer", "startup")["help_over_imports"]
    step = results.part("replay", "training_step")
    models = {
        "mnist": "`Net`",
        "cnn_mnist": "`CNN`",
        "rnn_mnist": "GRU over rows",
        "rnn_mackey_glass": "GRU on Mackey-Glass",
        "dqn_cartpole": "DQN",
    }
    parts, whole = (step[f"microseconds_{what}"] / 1000 for what in ("of_the_parts", "in_the_trainer"))
    lines = [
        *(
            [f"`last.ckpt`, share of a run of `{name}.yaml`", median(checkpoint[name], percent(2), "%")]
            for name in checkpoint
        ),
        [
            "start-up of `python -m lit_models --help`, over importing torch, torchvision and lightning",
            median(startup, number(2)),
        ],
        *(
            [f"speed with `--compile true`, over that without: {models[name]}", median(compiled[name], number(2))]
            for name in compiled
        ),
        [
            f"a training step of DQN, {step['gradient_steps']} gradient steps: its parts alone, and in the Trainer",
            f"{parts:.1f} ms, {whole:.1f} ms",
        ],
    ]
    for config in ("mnist", "dqn_cartpole"):
        soak = results.part("soak", config)
        memory = f"{soak['mib']:.0f} MiB, at the end {soak['mib_at_the_end']:.0f} MiB, slope "
        memory += f"{soak['mib_per_100000_steps']:+.2f} MiB in 100,000 steps"
        if "open_files" in soak:
            memory += f"; open files {soak['open_files']}, at the end {soak['open_files_at_the_end']}"
        lines.append([f"memory of {models[config]} over {soak['steps']:,} training steps", memory])
    return rows(["", "median (least to greatest)"], *lines)


TABLES: dict[str, Callable[[Results], list[str]]] = {
    table.__name__: table
    for table in (
        overview,
        mnist,
        digits,
        classifiers,
        loading,
        mackey_glass,
        series,
        agents,
        orl,
        detection,
        recognition,
        resume,
        fuzz,
        costs,
    )
}


def table(name: str, folder: Path, page: Path) -> str:
    """What stands between the markers of a table.

    Args:
        name: Of the table.
        folder: Of the results files.
        page: That the table is for.

    Raises:
        ValueError: There is no such table, or none of its figures.
    """
    if name not in TABLES:
        raise ValueError(f"there is no table {name}: there are {', '.join(TABLES)}")
    results = Results(name, folder, page.parent.resolve())
    try:
        lines = TABLES[name](results)
    except KeyError as error:
        raise ValueError(f"table {name}: a results file has no figure {error}: run its benchmark again") from None
    sources = [] if name == "overview" else ["", *results.sources()]  # which the other tables have
    return "\n".join(["", *lines, *sources, "", ""])


def fill(text: str, folder: Path, page: Path) -> tuple[str, list[str]]:
    """A page's text with its tables as the files have them, and the names of those that were different.

    Raises:
        ValueError: A marker is not closed, or a table cannot be made.
    """
    markers = [found[1] for found in MARKER.finditer(text)]
    if any(opening is None for opening in markers[::2]) or any(markers[1::2]) or len(markers) % 2:
        raise ValueError("a table begins with <!-- results: NAME --> and ends with <!-- /results -->, each a line")
    different = []

    def filled(found: re.Match) -> str:
        content = table(found[2], folder, page)
        if content != found[3]:
            different.append(found[2])
        return f"{found[1]}{content}{found[4]}"

    return MARKED.sub(filled, text), different


def main(arguments: Sequence[str] | None = None) -> int:
    """Fills or checks the pages, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="*", type=Path, help="Markdown files (default: README.md and docs/*.md)")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a table is not up to date")
    results = ROOT / "benchmarks" / "results"
    parser.add_argument(
        "--results", type=Path, default=results, help="folder of the results (default: benchmarks/results)"
    )
    options = parser.parse_args(arguments)
    status = 0
    for page in options.pages or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        where = page.relative_to(ROOT) if page.is_relative_to(ROOT) else page
        try:
            text = page.read_text()
            filled, different = fill(text, options.results, page)
        except (OSError, ValueError) as error:
            print(f"error: {where}: {error}", file=sys.stderr)
            status = 1
            continue
        if options.check and different:
            names = ", ".join(different)
            print(f"{where}: {names}: not what the results files say; run {parser.prog}", file=sys.stderr)
            status = 1
        elif filled != text:
            page.write_text(filled)
            print(f"{where}: {', '.join(different)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
