"""Forecasts of four real series, with one recipe (rnn_csv.yaml), beside simple ones and those of two libraries.

The last quarter of each series is forecast from every row of it that leaves a season after it: 12 months, 11 years, 52
weeks; 5 years where there is no season. Figures are mean absolute errors over all of these forecasts, divided by that
of the seasonal naive one, or of persistence where there is no season.

- *persistence*, *drift*, *seasonal naive*: see `lit_models.training.baselines`; drift is the line through the same
  context as the network's;
- *exponential smoothing* (Holt, "Forecasting seasonals and trends by exponentially weighted moving averages", 1957;
  Winters, "Forecasting sales by exponentially weighted moving averages", 1960), by statsmodels, with an additive trend
  and an additive or multiplicative season, or the level alone where there is no season. It sees all rows before each
  forecast; its parameters are found anew at 25 of the forecasts, in equal distances;
- *neuralforecast's GRU*, with the library's default network, scaler and training: two layers of 200 units, 1,000 steps.
  Context and horizon are those of our network. It learns from all rows before the last quarter, ours from the first 60%
  of the rows, and chooses its best epoch on the next 15%.

The recipe is trained once more with quantiles, for intervals that should hold 80% of the truth.
"""

import contextlib
import importlib.util
import io
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Timer

from benchmarks.common import ROOT, options_parser, parse, train, write_results
from datamodules import TimeSeriesDataModule
from lit_models.training.baselines import baselines

FILES = ROOT / "datamodules" / "files"
HORIZONS = {"air_passengers": 12, "sunspots": 11, "co2_weekly": 52, "nile": 5}
REFITS = 25
LIBRARIES = {"real": "statsmodels", "neuralforecast": "neuralforecast"}  # that the parts of the results need


def read(name: str) -> TimeSeriesDataModule:
    """A series, ready to test on."""
    path = str(FILES / f"{name}.csv")
    data = TimeSeriesDataModule(path, horizon=HORIZONS[name], test_fraction=0.25, fill="interpolate")
    data.setup("test")
    return data


def simple(data: TimeSeriesDataModule) -> dict[str, float]:
    """The mean absolute errors of the baselines over the test windows, and `naive`, which others are divided by."""
    context, target = data.test_set.__getitems__(list(range(len(data.test_set))))
    forecasts = baselines(context, data.hparams.horizon, data.season)
    errors = {name: (forecast - target).abs().mean().item() for name, forecast in forecasts.items()}
    return errors | {"naive": errors.get("seasonal_naive", errors["persistence"])}


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


def library_gru(data: TimeSeriesDataModule, seed: int) -> tuple[float, float]:
    """The mean absolute error of neuralforecast's GRU over the test windows, and the seconds it took."""
    import pandas as pd
    from neuralforecast import NeuralForecast  # takes eight seconds to import
    from neuralforecast.models import GRU

    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    hp, series = data.hparams, data.series[:, 0].numpy()
    table = pd.DataFrame({"unique_id": 0, "ds": range(len(series)), "y": series})
    test_rows = len(series) - int(data.test_set.starts[0]) - hp.context_length
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    model = GRU(h=hp.horizon, input_size=hp.context_length, random_seed=seed, **quiet)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of loaders without workers
        found = NeuralForecast([model], freq=1).cross_validation(table, n_windows=None, test_size=test_rows)
    return float((found["GRU"] - found["y"]).abs().mean()), time.perf_counter() - start


def recipe(data: TimeSeriesDataModule, seed: int, folder: Path, *flags: str) -> tuple[dict[str, float], float]:
    """The test metrics of our network, after its best epoch, and the seconds of its training."""
    timer, options = Timer(), ("path", "horizon", "test_fraction", "fill")
    flags += tuple(f"--data.{option}={data.hparams[option]}" for option in options)
    command = train("rnn_csv.yaml", seed, folder, [timer], *flags)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        (metrics,) = command.trainer.test(datamodule=command.datamodule, ckpt_path="best", verbose=False)
    return metrics, timer.time_elapsed("train")


def measure(name: str, seeds: int, folder: Path) -> dict[str, Any]:
    """The errors of our network and of simpler methods on a series, over the naive one's, and our intervals."""
    data = read(name)
    errors = simple(data)
    naive = errors.pop("naive")
    unit = data.naive_error[0] / naive
    figures: dict[str, Any] = {key: [] for key in ("rnn", "seconds", "rnn_quantiles", "pinball", "coverage")}
    for seed in range(seeds):
        metrics, seconds = recipe(data, seed, folder)
        banded, _ = recipe(data, seed, folder, "--model.quantiles=[0.1,0.5,0.9]")
        found = {"rnn": metrics["test/mase"] * unit, "seconds": seconds, "rnn_quantiles": banded["test/mase"] * unit}
        found |= {"pinball": banded["test/pinball"] * unit, "coverage": banded["test/coverage"]}
        for key, value in found.items():
            figures[key].append(value)
        print(f"  {name}, seed {seed}: {', '.join(f'{key} {value:.3f}' for key, value in found.items())}", flush=True)
    figures |= {method: error / naive for method, error in errors.items()}
    figures |= {"rows": len(data.series), "horizon": data.hparams.horizon, "season": data.season}
    figures["windows"] = len(data.test_set)
    seasons = ["add"] + ["mul"] * bool((data.series > 0).all()) if data.season > 1 else [None]
    for season in seasons:
        key = f"smoothing_{season or 'level'}"
        figures[key] = smoothing(data, season) / naive
        print(f"  {name}, exponential smoothing, {season}: {figures[key]:.3f}", flush=True)
    return figures


def measure_library(name: str, seeds: int) -> dict[str, Any]:
    """The errors of neuralforecast's GRU on a series, over the naive one's."""
    data, figures = read(name), {"gru": [], "seconds": []}
    naive = simple(data)["naive"]
    for seed in range(seeds):
        error, seconds = library_gru(data, seed)
        figures["gru"].append(error / naive)
        figures["seconds"].append(seconds)
        print(f"  {name}, neuralforecast, seed {seed}: {error / naive:.3f} in {seconds:.0f} s", flush=True)
    return figures


def main() -> None:
    """Runs, and writes benchmarks/results/series.json."""
    parser = options_parser("series", __doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each series (default: 3)")
    parser.add_argument("--only", choices=list(LIBRARIES), help="one part, instead of both")
    options = parse(parser, *LIBRARIES.values())
    for part, library in LIBRARIES.items():
        if options.only in (None, part) and importlib.util.find_spec(library) is None:
            parser.error(f"{library} is not installed: pip install -e '.[bench,peers]'")
    seeds = list(range(options.seeds))
    if options.only in (None, "real"):
        with tempfile.TemporaryDirectory() as folder:
            found = {name: measure(name, options.seeds, Path(folder)) for name in HORIZONS}
        write_results(options, real={"seeds": seeds, "series": found})
    if options.only in (None, "neuralforecast"):
        found = {name: measure_library(name, options.seeds) for name in HORIZONS}
        write_results(options, neuralforecast={"seeds": seeds, "series": found})


if __name__ == "__main__":
    main()
