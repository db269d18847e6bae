"""The commands, their parser and their help."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lit_models.cli.enrolment import enrol
from lit_models.cli.errors import format_parser_error  # imports all classes, to be known by name
from lit_models.cli.generation import generate
from lit_models.cli.recognition import identify, verify
from lit_models.export.export import export
from lit_models.training.runs import runs

# Commands beside Lightning's, without a model or Trainer of their own.
COMMANDS: dict[str, Callable[..., None]] = {
    verb.__name__: verb for verb in (enrol, export, generate, identify, runs, verify)
}
CKPT_PATH = (
    "The checkpoint of the trained model: a file, or last, the newest one of this name, or best, by what is watched.",
    "The checkpoint to go on from: a file, last for that of the newest run of this name, or auto, which starts afresh "
    "where there is none.",
)
# Titles of groups of options, and the groups with a help of their own.
GROUPS = {"lr_monitor": "curve of the learning rate", "progress_bar": "progress bar", "trainer": "Lightning's Trainer"}
GROUPS |= {"model": "model", "data": "data", "checkpoint": "checkpoints that are written"}
DETAILS = {
    "trainer": "Show the options of Lightning's Trainer, such as --trainer.max_epochs or --trainer.devices, and exit.",
    "checkpoint": "Show the options of checkpoints, such as --checkpoint.monitor, and exit.",
}
PICTURES = {  # several, without commas
    "enrol": "A folder with a subfolder of pictures per person, named after them. With --name, the pictures of one "
    "person, files or folders; - reads one from standard input.",
    "identify": "pictures, videos, or folders of them; - reads a picture from standard input",
    "verify": "two picture files",
}


class Parser(LightningArgumentParser):
    """LightningCLI's parser, with one-line errors and without abbreviated options; its help has groups of options."""

    shown: list[argparse._ArgumentGroup] | None = None  # in the help; all, if not given

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", None) or self
        names = [option.lstrip("-") for action in parser._actions for option in action.option_strings or [action.dest]]
        self.exit(2, f"error: {format_parser_error(message, names, COMMANDS)}\n")

    @override
    def format_help(self, *args: Any) -> str:
        groups = self._action_groups
        self._action_groups = self.shown or groups
        try:
            return super().format_help(*args)
        finally:
            self._action_groups = groups


class GroupHelp(argparse.Action):
    """Prints the help of one group of options, which stands in no other help, and exits."""

    def __init__(self, option_strings: list[str], dest: str, group: argparse._ArgumentGroup, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)
        self.group = group

    @override
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.shown = [self.group]
        parser.print_help()
        parser.exit()


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of the text below the options."""


def arrange_help(parser: Parser, subcommand: str) -> None:
    """Keeps our own options in the help of one of Lightning's commands, and gives most of Lightning's a help apart."""
    parser.usage = f"python -m lit_models {subcommand} [--config FILE] [--model CLASS] [--data CLASS] [options]"
    parser.shown = list(parser._action_groups)
    parser.shown[-1].title = "checkpoint that is read"
    for name, group in parser.groups.items():
        group.title = GROUPS.get(name, group.title)
        if name in DETAILS:
            parser.shown.remove(group)
            parser.add_argument(f"--help.{name}", action=GroupHelp, group=group, help=DETAILS[name])
    for action in parser._actions:
        if action.dest == "ckpt_path":
            action.help = CKPT_PATH[subcommand == "fit"]


def summary(verb: Callable[..., None]) -> str:
    """The first line of a command's docstring."""
    return (verb.__doc__ or "").partition("\n")[0]


def run_command(name: str, args: list[str]) -> None:
    """Runs one of our own commands, whose options are the parameters of its function."""
    verb = COMMANDS[name]
    parser = Parser(prog=f"python -m lit_models {name}", description=summary(verb))
    skip = {"pictures"} if name in PICTURES else set()
    parser.add_function_arguments(verb, as_group=False, as_positional=name == "runs", skip=skip)
    if name in PICTURES:
        own = "--pictures" if name == "enrol" else "pictures"
        parser.add_argument(own, nargs="+", metavar="PICTURE", help=PICTURES[name])
    for action in parser._actions:
        if isinstance(action.default, bool):  # a flag by itself is enough
            action.nargs, action.const = "?", True
    verb(**parser.parse_args(args).as_dict())
