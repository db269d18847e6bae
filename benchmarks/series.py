"""Forecasts of four real series, with one recipe (rnn_csv.yaml), beside simple ones and exponential smoothing.

The last quarter of each series is forecast from every row of it that leaves a season after it: 12 months, 11 years, 52
weeks; 5 years where there is no season. Figures are mean absolute errors over all of these forecasts, divided by that
of the seasonal naive one, or of persistence where there is no season.

- *persistence*, *drift*, *seasonal naive*: see `lit_models.training.baselines`; drift is the line through the same
  context as the network's;
- *exponential smoothing* (Holt, "Forecasting seasonals and trends by exponentially weighted moving averages", 1957;
  Winters, "Forecasting sales by exponentially weighted moving averages", 1960), by statsmodels, with an additive trend
  and an additive or multiplicative season, or the level alone where there is no season. It sees all rows before each
  forecast; its parameters are found anew at 25 of the forecasts, in equal distances.
"""

import contextlib
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Timer

from benchmarks.common import ROOT, options_parser, parse, train, write_results
from datamodules import TimeSeriesDataModule

FILES = ROOT / "datamodules" / "files"
HORIZONS = {"air_passengers": 12, "sunspots": 11, "co2_weekly": 52, "nile": 5}
REFITS = 25
FLAGS = ["--data.test_fraction=0.25", "--data.fill=interpolate"]


def smoothing(data: TimeSeriesDataModule, season: str | None) -> float:
    """The mean absolute error of exponential smoothing over the test windows, its season `add` or `mul`, or none."""
    from statsmodels.tsa.holtwinters import ExponentialSmoothing  # takes two seconds to import

    hp, series = data.hparams, data.series[:, 0].double().numpy()
    kind = {"trend": "add", "seasonal": season, "seasonal_periods": data.season} if season else {}
    weights = ["smoothing_level"] + ["smoothing_trend", "smoothing_seasonal"] * bool(season)
    starts = {"initial_level": "initial_level"}
    starts |= {"initial_trend": "initial_trend", "initial_seasonal": "initial_seasons"} if season else {}
    origins, errors = (data.test_set.starts + hp.context_length).tolist(), []
    for number, origin in enumerate(origins):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of searches that stop early
            if number % max(1, len(origins) // REFITS) == 0:
                model = ExponentialSmoothing(series[:origin], **kind, initialization_method="estimated").fit()
                found = model.params
            else:
                start = {name: found[theirs] for name, theirs in starts.items()}
                model = ExponentialSmoothing(series[:origin], **kind, initialization_method="known", **start)
                model = model.fit(optimized=False, **{name: found[name] for name in weights})
        errors.append(np.abs(model.forecast(hp.horizon) - series[origin : origin + hp.horizon]).mean())
    return float(np.mean(errors))


def measure(name: str, seeds: int, folder: Path) -> dict[str, Any]:
    """The errors of all methods on a series, over the naive one's."""
    flags = [f"--data.path={FILES / name}.csv", f"--data.horizon={HORIZONS[name]}", *FLAGS]
    figures: dict[str, Any] = {"rnn": [], "seconds": []}
    for seed in range(seeds):
        timer = Timer()
        command = train("rnn_csv.yaml", seed, folder, [timer], *flags)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            (metrics,) = command.trainer.test(datamodule=command.datamodule, ckpt_path="best", verbose=False)
        found = {key.removeprefix("test/mase_"): value for key, value in metrics.items() if "/mase_" in key}
        naive = found.get("seasonal_naive", found["persistence"])
        figures["rnn"].append(metrics["test/mase"] / naive)
        figures["seconds"].append(timer.time_elapsed("train"))
        figures |= {key: value / naive for key, value in found.items()}
        print(f"  {name}, seed {seed}: {figures['rnn'][-1]:.3f} in {figures['seconds'][-1]:.0f} s", flush=True)
    data = command.datamodule
    figures |= {"rows": len(data.series), "horizon": data.hparams.horizon, "season": data.season}
    seasons = ["add"] + ["mul"] * bool((data.series > 0).all()) if data.season > 1 else [None]
    for season in seasons:
        key = f"smoothing_{season or 'level'}"
        figures[key] = smoothing(data, season) / (naive * data.naive_error[0])
        print(f"  {name}, exponential smoothing, {season}: {figures[key]:.3f}", flush=True)
    return figures


def main() -> None:
    """Runs, and writes benchmarks/results/series.json."""
    parser = options_parser("series", __doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each series (default: 3)")
    options = parse(parser, "statsmodels")
    with tempfile.TemporaryDirectory() as folder:
        found = {name: measure(name, options.seeds, Path(folder)) for name in HORIZONS}
    write_results(options, real={"seeds": list(range(options.seeds)), "series": found})


if __name__ == "__main__":
    main()
