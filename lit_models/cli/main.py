"""The command line: LightningCLI with default logger and callbacks, self-contained checkpoints, more commands."""

import argparse
import glob
import json
import logging
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.jit import TracerWarning
from typing_extensions import override

from lit_models.cli.commands import COMMANDS, HelpFormatter, Parser, arrange_help, run_command, summary
from lit_models.cli.errors import format_error  # imports all classes, to be known by name
from lit_models.cli.parsing import (
    check_yaml,
    classes_first,
    expand_home,
    loading_configs,
    monitored_plateau,
    own_defaults,
)
from lit_models.common.messages import StderrHandler, format_metric, log
from lit_models.training.callbacks import ProgressBar, Throughput
from lit_models.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from lit_models.training.hardware import check_hardware, compile_available, keep_freed_memory
from lit_models.training.internals import NoProfiler, set_logged_step
from lit_models.training.predictions import PredictionWriter
from lit_models.training.processes import Watch
from lit_models.training.recorded_config import check_resume, modules_option, recorded_config, run_folder, with_config
from lit_models.training.resume import RunCheckpoint
from lit_models.training.runs import RunRecord
from lit_models.training.trust import Command, Modules, allow_imports, modules_of, packages_in, restored_settings


class CLI(LightningCLI):
    """Parses, builds and runs; see LightningCLI.

    Precedence: defaults < config files < checkpoint < flags. A resumed run must not contradict its checkpoint.
    """

    def __init__(self, args: ArgsType = None) -> None:
        if not torch.cuda.is_available():
            # Set by Lightning: every optimizer step would look for the driver again, 0.1 ms without a GPU.
            os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
        keep_freed_memory()
        self.verb = next(iter(sys.argv[1:] if args is None else args), "")
        with restored_settings(), loading_configs(), own_defaults():
            super().__init__(
                save_config_callback=RunRecord,
                save_config_kwargs={"overwrite": True},  # a resumed run saves into its own folder
                trainer_defaults={"default_root_dir": "logs"},
                seed_everything_default=0,
                parser_class=Parser,
                parser_kwargs={
                    "prog": "python -m lit_models",
                    "description": "Trains, tests and uses the models.",
                    "epilog": "\n".join(
                        ["further subcommands:", *(f"    {name:<19} {summary(COMMANDS[name])}" for name in COMMANDS)]
                    ),
                    "formatter_class": HelpFormatter,
                },
                args=args,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )

    @override
    def subcommands(self) -> dict[str, set[str]]:
        verbs = {verb: skip | {"weights_only"} for verb, skip in LightningCLI.subcommands().items()}
        verbs["predict"].add("return_predictions")
        # The parsers of the others would take 0.6 s.
        return {self.verb: verbs[self.verb]} if self.verb in verbs else verbs

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name",
            type=str | None,
            help="The run's name: its results go to <default_root_dir>/<name>/version_<N>. The first config file's "
            "name, if not given; the model's class, without a config file.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LearningRateMonitor, "lr_monitor")
        parser.add_lightning_class_args(ProgressBar, "progress_bar")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.set_defaults({"checkpoint.save_last": True})
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=int | None,
            help="Steps of the optimizer after which last.ckpt is written within an epoch. After epochs only, if not "
            "given.",
        )
        parser.add_argument(
            "--process_timeout",
            type=float,
            default=50.0,
            help="Seconds that a process waits to meet the others of a run, or for a sign of life from one that is "
            "frozen or cannot be reached, before it ends.",
        )
        parser.add_argument(
            "--compile",
            type=bool,
            default=False,
            help="Whether to compile the model with torch.compile, which takes a while at first, and a compiler; "
            "TensorBoard has no graph then.",
        )
        parser.add_argument(
            "--modules",
            type=Modules,
            help="Modules of your own that the checkpoint may name classes or gymnasium environments of, beside those "
            "that the command or a config file names: my_module, or [my_module, another].",
        )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        arrange_help(parser, subcommand)
        if subcommand == "predict":
            parser.add_argument(
                "--images",
                nargs="+",
                type=str,
                help="Pictures to classify, or folders of them, of any size and colour. The test set, or rows, if not "
                "given.",
            )
            parser.add_argument("--output", type=str, default="predictions.csv", help="The CSV file to write.")
            parser.add_argument(
                "--video",
                type=str | None,
                help="A folder for videos of an agent's episodes 0, 1, 8, 27, 64, ...; none, if not given.",
            )
        return parser

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        args = classes_first([monitored_plateau(arg) for arg in (sys.argv[1:] if args is None else args)])
        scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        scan.error = parser.error
        scan.add_argument("--ckpt_path")
        scan.add_argument("--config", "-c", action="append", default=[])
        scan.add_argument("--model")
        scan.add_argument("--data")
        scanned = scan.parse_known_args(args)[0]
        for file in filter(os.path.isfile, scanned.config):
            check_yaml(Path(file))
        for option, file in (("--model", scanned.model), ("--data", scanned.data)):
            if file and file.endswith((".yaml", ".yml")) and os.path.isfile(file) and "model" in check_yaml(Path(file)):
                raise ValueError(f"{file} is the config of a whole run, not of {option} alone: give it with --config")
            if file and not file.endswith((".yaml", ".yml")) and os.path.isfile(file):
                raise ValueError(
                    f"{option} {file} is a file, not a class: name the class, and give it as one of its options"
                )
        path = given = scanned.ckpt_path
        checkpoint: dict[str, Any] = {}
        if path in ("last", "auto", "best"):
            if path == "best" and self.verb == "fit":
                raise ValueError("--ckpt_path best is to evaluate and to predict with: training goes on from last")
            path, checkpoint = self._last_checkpoint(parser, args, required=None if path == "auto" else path)
            if given == "best":
                path = best_checkpoint(path, checkpoint)
                checkpoint = read_checkpoint(path)
        elif path:
            checkpoint = read_checkpoint(path)
        command = Command(args)
        self.modules = sorted(command.modules)  # from which a checkpoint may import classes
        if self.verb == "fit" and path and "optimizer_states" not in checkpoint:
            raise ValueError(
                f"{path} holds only the weights, with which training cannot go on: give another checkpoint"
            )
        recorded = recorded_config(checkpoint, path, self.modules, resuming=self.verb == "fit") if path else {}
        counts = ("epoch", "global_step", "env_steps")  # not what is large in it
        self.checkpoint_step = {key: checkpoint[key] for key in counts if checkpoint.get(key) is not None}
        if not recorded:
            self.config = parser.parse_args(args)
        else:
            # By itself first: a string in it may be the path of a function, or of a config file with classes.
            allow_imports(self.modules)
            alone = parser.parse_args(with_config(args[:1], recorded, first=True))
            its_own = packages_in(json.dumps(recorded, ensure_ascii=False))
            allow_imports({*self.modules, *command.mentioned - its_own}, command.urls)
            # With the checkpoint before files and flags, what they contradict can be found.
            self.config = parser.parse_args(with_config(args, recorded, first=True))
            verb = self.config.subcommand
            check_resume(self.config[verb], alone[verb], path, resuming=verb == "fit")
            if verb != "fit":
                self.config = parser.parse_args(with_config(args, recorded, first=False))
        verb = self.config.subcommand
        config = self.config[verb]
        if config.ckpt_path and not given:
            parser.error(f"ckpt_path has no place in a config file: give --ckpt_path {config.ckpt_path}")
        if verb != "fit" and not path:
            parser.error(f"{verb} needs a trained model: --ckpt_path FILE, or --ckpt_path last for the newest run")
        config.ckpt_path = path
        config.name = run_name(config)
        self.modules = sorted({*self.modules, *modules_of(config.model), *modules_of(config.get("data"))})

    def _last_checkpoint(
        self, parser: LightningArgumentParser, args: list[str], required: str | None
    ) -> tuple[str | None, dict[str, Any]]:
        """The newest undamaged checkpoint of the run's name, and its content."""
        config = parser.parse_args(args)
        patterns = checkpoint_patterns(config[config.subcommand], config.subcommand == "fit")
        files = (path for pattern in patterns for path in glob.glob(pattern) if os.path.isfile(path))
        found = sorted(files, key=lambda path: os.stat(path).st_mtime_ns)
        for path in reversed(found):
            try:
                return path, read_checkpoint(path)
            except ValueError as error:
                rank_zero_warn(f"{error}: passed over for the one before")
        if required:
            usable = "usable " if found else ""
            raise FileNotFoundError(f"--ckpt_path {required}: there is no {usable}{' or '.join(patterns)} yet")
        return None, {}

    def _parse_ckpt_path(self) -> None:
        """Nothing: in Lightning's a checkpoint has precedence over flags; ours is in `parse_arguments`."""

    @override
    def before_instantiate_classes(self) -> None:
        every = self._get(self.config, "checkpoint_every_n_steps")
        if every is not None and every < 1:
            raise ValueError(f"checkpoint_every_n_steps is {every}: it must be at least 1")
        timeout = self._get(self.config, "process_timeout")
        if timeout < 5:
            raise ValueError(f"process_timeout is {timeout:g}: it must be at least 5 seconds")
        check_hardware(self._get(self.config, "trainer"))

    def _logger(self) -> TensorBoardLogger:
        config = self.config[self.subcommand]
        root, name, version, purge_step = Path(config.trainer.default_root_dir), config.name, None, None
        if config.ckpt_path and (run := run_folder(config.ckpt_path)):  # go on in the checkpoint's own run
            # The progress bar would show the end of "version_3".
            number = run.name.removeprefix("version_")
            root, name, version = run.parent.parent, run.parent.name, int(number) if number.isdigit() else run.name
            if self.subcommand == "fit":  # what was logged after the checkpoint will be logged again
                # An agent's evaluation is drawn at the very step that its checkpoint is of.
                counts = self.checkpoint_step
                purge_step = counts.get("env_steps", counts.get("global_step", 0) - 1) + 1
        folder = root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot write to {folder}: {error.strerror}; set --trainer.default_root_dir") from error
        if not os.access(folder, os.W_OK):
            raise OSError(f"cannot write to {folder}; set --trainer.default_root_dir")
        # A checkpoint's run has drawn it already, and a compiled model cannot be traced.
        graph = not (config.ckpt_path or config.compile)
        return TensorBoardLogger(root, name, version, log_graph=graph, default_hp_metric=False, purge_step=purge_step)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if self.subcommand == "predict":  # it trains nothing
            config |= {"logger": False, "enable_checkpointing": False}
        elif config["logger"] in (None, True):
            config["logger"] = self._logger()
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        if self.subcommand == "fit" and self.config.fit.ckpt_path:  # it goes on with what they have found
            given = [callback for callback in given if not isinstance(callback, LearningRateFinder | BatchSizeFinder)]
        config["callbacks"] = given
        enabled = {
            ModelCheckpoint: config["enable_checkpointing"] is not False,
            lightning_callbacks.ProgressBar: config["enable_progress_bar"] is not False,
            LearningRateMonitor: config["logger"] is not False and getattr(self.model, "lr_monitor", True),
        }

        def wanted(callback: Callback) -> bool:
            kind = next((kind for kind in enabled if isinstance(callback, kind)), type(callback))
            return enabled.get(kind, True) and not any(isinstance(other, kind) for other in given)

        callbacks = [callback for callback in callbacks if wanted(callback)]
        checkpoint_callback = next((callback for callback in callbacks if isinstance(callback, RunCheckpoint)), None)
        if checkpoint_callback is not None:
            checkpoint_callback.modules = self.modules
        if every := self._get(self.config, "checkpoint_every_n_steps"):
            if checkpoint_callback is None or checkpoint_callback.save_last is not True:
                raise ValueError(
                    "checkpoint_every_n_steps is about last.ckpt, which this run does not write: leave it out, or "
                    "checkpoint.save_last, trainer.enable_checkpointing and trainer.callbacks as they are"
                )
            checkpoint_callback.every_n_steps = every
        plugins = config["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config["plugins"] = [*plugins, AtomicCheckpointIO()]
        config["profiler"] = config["profiler"] or NoProfiler()
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter(self.config.predict.output))
        return super()._instantiate_trainer(config, callbacks)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True}
        if "verbose" in kwargs:
            kwargs["verbose"] = False  # our own table is easier to read
        if subcommand != "predict":
            return kwargs
        if folder := self.config.predict.video:
            if not hasattr(self.model, "video_folder"):
                raise ValueError(f"--video: {type(self.model).__name__} plays no episodes: leave it out")
            self.model.video_folder = folder
        if images := self.config.predict.images:
            data = kwargs.pop("datamodule", None)
            if not hasattr(data, "image_dataloader"):
                raise ValueError(f"--images: {type(data or self.model).__name__} does not read pictures: leave it out")
            kwargs["dataloaders"] = data.image_dataloader(*images)
        return kwargs | {"return_predictions": False}

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand in ("validate", "test"):
            counts = self.checkpoint_step
            set_logged_step(self.trainer, counts.get("global_step", 0), counts.get("epoch", 0))
        if self.datamodule is None or getattr(self.datamodule, "resumable", False):
            # They are, by a state of their own.
            warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        if self._get(self.config, "compile") and compile_available(self.trainer.strategy.root_device):
            self.model.compile()
        loader = {"fit": "train", "validate": "val"}.get(subcommand, subcommand) + "_dataloader"
        if self.datamodule is None and not is_overridden(loader, self.model):
            raise ValueError("no data: name them with --data MNISTDataModule or the like, or in a --config")
        try:
            with Watch(self.trainer, self._get(self.config, "process_timeout"), report_error):
                super()._run_subcommand(subcommand)
        except RuntimeError as error:
            if "EADDRINUSE" in str(error):
                raise ConnectionError(
                    f"port {os.environ.get('MASTER_PORT')} of this machine is in use: set MASTER_PORT to another one"
                ) from error
            lost = torch.distributed.is_available() and isinstance(error, torch.distributed.DistError)
            if lost or "/gloo/" in str(error):
                raise ConnectionError(
                    "another process of this run has ended or cannot be reached: see what it says of itself, then go "
                    "on with --ckpt_path last"
                ) from error
            if "Error(s) in loading state_dict" not in str(error):
                raise
            mismatch = str(error).splitlines()[1].strip()
            path = self.config[subcommand].ckpt_path
            raise ValueError(f"{path} does not fit the model that is asked for: {mismatch}") from error

    def after_test(self) -> None:
        """Prints the results."""
        if self.config[self.subcommand].verbose and self.trainer.is_global_zero:
            metrics = {name: format_metric(name, value.item()) for name, value in self.trainer.callback_metrics.items()}
            width = max(map(len, metrics), default=0)
            for name, value in metrics.items():
                print(f"{name:<{width}}  {value}")

    after_validate = after_test

    @override
    def after_fit(self) -> None:
        best = self.trainer.checkpoint_callback
        path = best and (best.best_model_path or best.last_model_path)
        if path and os.path.exists(path) and self.trainer.is_global_zero:
            scored = best.monitor and best.best_model_score is not None
            score = format_metric(best.monitor, best.best_model_score.item()) if scored else ""
            which = f"Best checkpoint ({best.monitor} {score})" if scored else "Last checkpoint"
            modules = modules_option(self.trainer, self.modules)
            print(f"{which}. To test it:")
            print(f"  python -m lit_models test --ckpt_path {shlex.quote(os.path.relpath(path))}{modules}")


def run_name(config: Any) -> str:
    """The run's name: `--name`, else the stem of the first config file, else the model's class."""
    files = [path for path in config.config or [] if path is not None]
    if config.name or not files:
        return config.name or config.model.class_path.rpartition(".")[2]
    return Path(str(files[0])).stem


def best_checkpoint(path: str, checkpoint: dict[str, Any]) -> str:
    """The best checkpoint of a run, which lies beside any other of its checkpoints and is named in them."""
    states = checkpoint.get("callbacks", {}).values()
    watched = [state for state in states if isinstance(state, dict) and state.get("monitor")]
    named = [state["best_model_path"] for state in watched if state.get("best_model_path")]
    if not named:
        raise ValueError(f"--ckpt_path best: the run of {path} has none, since nothing is watched: take last instead")
    best = Path(path).parent / Path(named[0]).name  # the run may have been moved
    if not best.is_file():
        raise FileNotFoundError(f"--ckpt_path best: {best} is gone: take last instead")
    return str(best)


def checkpoint_patterns(config: Any, fitting: bool) -> list[str]:
    """Where runs of this name keep their checkpoints; a ValueError where a logger of another kind decides it."""
    root, usual = config.trainer.default_root_dir, ("version_*", "checkpoints", "*.ckpt")
    # A run to test may have been one with the usual logger, whatever the test logs to.
    others = [] if fitting else [os.path.join(glob.escape(os.path.join(root, run_name(config))), *usual)]

    def named(part: Any, *kinds: str) -> bool:
        return hasattr(part, "class_path") and part.class_path.rpartition(".")[2] in kinds

    callbacks = config.trainer.callbacks or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    own = [callback.init_args for callback in callbacks if named(callback, "ModelCheckpoint", "RunCheckpoint")]
    if folder := (own[0] if own else config.checkpoint).get("dirpath"):
        return [os.path.join(glob.escape(str(folder)), "*.ckpt"), *others]
    logger = config.trainer.logger
    logger = logger[0] if isinstance(logger, list) and logger else logger
    if logger in (None, True):
        return [os.path.join(glob.escape(os.path.join(root, run_name(config))), *usual)]
    if named(logger, "TensorBoardLogger", "CSVLogger"):
        folder = os.path.join(logger.init_args.save_dir, logger.init_args.get("name") or "")
        return [os.path.join(glob.escape(folder), *usual), *others]
    if fitting:
        kind = logger.class_path.rpartition(".")[2] if hasattr(logger, "class_path") else "no logger"
        raise ValueError(
            f"--ckpt_path last and auto: where a run with {kind} keeps its checkpoints is not known: name one"
        )
    return others


def configure_messages() -> None:
    """Hides other libraries' advice, and prints what is said of a run, and warnings, in one line each."""
    log.handlers = [StderrHandler()]
    log.setLevel(logging.INFO)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # LightningCLI calls what jsonargparse renamed
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
    warnings.filterwarnings("ignore", message=".*torch.jit.trace.*")  # how TensorBoard's writer draws the graph
    warnings.filterwarnings("ignore", category=TracerWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # in-memory data need none
    warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero.*")  # no validation set
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")  # RunRecord chooses it
    warnings.filterwarnings("ignore", message="Your `IterableDataset` has `__len__` defined.*")  # it has no workers
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # a resumed run's own folder
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need.*")  # to test, they don't
    warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a name in another script, in a picture
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    advice = ("💡", "set_float32_matmul_precision")  # the latter on a GPU that can compute with fewer digits
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not any(part in record.getMessage() for part in advice))
    if process_rank():  # the first one says it all
        warnings.simplefilter("ignore")
        for name in ("lightning.fabric", "lightning.pytorch", "lightning"):
            logging.getLogger(name).setLevel(logging.ERROR)


def process_rank() -> int:
    """The rank of this process, as far as the environment tells it before the processes have met."""
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    if not node.isdigit():
        raise ValueError(f"NODE_RANK is {node!r}: it must be the number of this machine among all, from 0")
    return max(rank_zero_only.rank or 0, int(node))


def main(args: list[str] | None = None) -> int:
    """Runs the command line, and returns the exit status.

    Set `LIT_MODELS_DEBUG` in the environment to see where an error came from.
    """
    args = expand_home(sys.argv[1:] if args is None else args)
    verb, *options = args or [""]
    try:
        configure_messages()
        if verb in COMMANDS:
            run_command(verb, options)
        elif not args:
            CLI(["--help"])
        else:
            CLI(args)
    except SIGTERMException:
        return 128 + 15
    except (OSError, ValueError, ImportError, MisconfigurationException) as error:
        if os.environ.get("LIT_MODELS_DEBUG"):
            raise
        return report_error(str(error))
    except Exception as error:  # of a callback, logger or class of the user's, which may raise anything
        if os.environ.get("LIT_MODELS_DEBUG"):
            raise
        return report_error(f"{type(error).__name__}: {str(error).strip()} (to see where, set LIT_MODELS_DEBUG=1)")
    return 0


def report_error(message: str) -> int:
    """Prints an error in one line, and returns the exit status."""
    where = f" in process {rank_zero_only.rank}" if rank_zero_only.rank else ""
    print(f"error{where}: {format_error(message)}", file=sys.stderr)
    return 1
