"""LightningCLI, wired for streams: short class names, links from data to model, clear errors."""

import inspect
import logging
import os
import re
import shutil
import sys
import traceback
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only

import lightning_cil.callbacks
import lightning_cil.data
import lightning_cil.methods
import lightning_cil.schedulers
from lightning_cil._compat import metadata_file
from lightning_cil._usage import UsageError, UsageParser, check_configs, check_nulls, explain, own_names_first, plain
from lightning_cil.callbacks import Interruption, NonFiniteError
from lightning_cil.callbacks.summary import rank_zero_print
from lightning_cil.data import IncrementalDataModule
from lightning_cil.methods import IncrementalModule
from lightning_cil.references import run_references
from lightning_cil.report.records import FOLDER
from lightning_cil.run_logger import RunLogger
from lightning_cil.stream_checkpoint import STATE_KEY, check_path, newest_checkpoint
from lightning_cil.trainer import IncrementalTrainer


class SaveRunConfig(SaveConfigCallback):
    """Saves `config.yaml` without what belongs to one call, so that every command takes a run's config."""

    OF_ONE_CALL = ("ckpt_path", "stop_after_task", "weights_only")

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any) -> None:
        config = config.clone()
        for name in self.OF_ONE_CALL:
            config.pop(name, None)
        super().__init__(parser, config, **kwargs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A run that goes on in its folder keeps its first config; the new one is saved beside it."""
        log_dir = trainer.log_dir
        if not self.already_saved and log_dir is not None:
            count = len(list(Path(log_dir).glob("config*.yaml")))
            self.config_filename = "config.yaml" if not count else f"config_resumed_{count}.yaml"
        super().setup(trainer, pl_module, stage)


class StreamCLI(LightningCLI):
    """`fit`, `validate`, `test`, `predict` over any method and data set.

    Args:
        args: Command and options.
    """

    def __init__(self, args: list[str]) -> None:
        self.arguments = args
        super().__init__(
            model_class=IncrementalModule,
            datamodule_class=IncrementalDataModule,
            trainer_class=IncrementalTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "lightning-cil"},
            parser_class=UsageParser,
            args=args,
        )

    def before_fit(self) -> None:
        """Let an interrupted run say what to type to go on."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Interruption):
                callback.command = ["lightning-cil", *self.arguments]

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The given one: the parsers of the others would cost most of the start-up."""
        command = self.arguments[0]
        return {command: LightningCLI.subcommands()[command]}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; LightningCLI's own warns when it is given arguments by a console script."""
        assert isinstance(parser, UsageParser)
        check_configs(args, parser)
        with own_names_first():
            self.config = parser.parse_args(args)
        given = self.config[self.config.subcommand]
        if type(given.seed_everything) is int and not 0 <= given.seed_everything < 2**32:
            raise ValueError(f"`seed_everything` is `{given.seed_everything}`; expected 0 to {2**32 - 1}.")
        sections: dict[str, type] = {
            "trainer": IncrementalTrainer,
            "model": IncrementalModule,
            "data": IncrementalDataModule,
        }
        for name, owner in sections.items():
            if not hasattr(given[name], "as_dict"):
                value = "null" if given[name] is None else given[name]
                raise ValueError(f"`{name}` is `{value}`; expected a mapping. Leave it out, or fill it in.")
            check_nulls(given[name], owner, name)

    def instantiate_classes(self) -> None:
        """Build everything; factories then hold their class and arguments only, not the parser and the trainer."""
        super().instantiate_classes()
        for owner in (self.model, self.datamodule, *self.trainer.callbacks):  # type: ignore[attr-defined]
            for name, value in vars(owner).items():
                if isinstance(value, partial) and value.args and inspect.isclass(value.args[0]):
                    setattr(owner, name, partial(value.args[0], *value.args[1:], **value.keywords))

    def before_instantiate_classes(self) -> None:
        """Only a run that trains gets a folder, unless a logger was asked for."""
        if self.subcommand != "fit":
            self.save_config_callback = None
            trainer = self.config[self.subcommand].trainer
            if trainer.logger is None or trainer.logger is True:
                trainer.logger = False

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except Exception:
            _remove_empty_run(self.trainer)
            raise

    def _parse_ckpt_path(self) -> None:
        """The command line and the configs win over a checkpoint's hyper-parameters; differences are named.

        Lightning's own lets the checkpoint win in silence, so that a run could not be branched with other settings.
        """
        config = self.config[self.config.subcommand]
        path = config.get("ckpt_path")
        check_path(path, fit=self.config.subcommand == "fit")
        if path == "last":
            path = newest_checkpoint(config.trainer.default_root_dir or "runs")
        if not path or not Path(path).exists():
            return
        try:
            saved = torch.load(metadata_file(path), map_location="cpu", weights_only=True, mmap=True)
            state = saved["callbacks"][STATE_KEY]
            finished = state["phase"] == "boundary" and state["task"] + 1 == state["num_tasks"]
            learned_with = dict(saved.get("hyper_parameters") or {})
        except Exception:  # the trainer reads it again and says what is wrong with it
            return
        if finished and self.config.subcommand == "fit":
            rank_zero_print(f"The run of {path} is finished: nothing to train.")
            return
        given = config.model.get("init_args", {})
        for name, value in learned_with.items():
            if name in given and plain(given[name]) != plain(value):
                rank_zero_print(
                    f"`model.init_args.{name}` is {plain(given[name])} here and {plain(value)} in {path}: "
                    "the value given here is used."
                )


def run(arguments: list[str], debug: bool = False) -> int:
    """Run one command.

    Args:
        arguments: Command and options.
        debug: Show the traceback of an error.

    Returns:
        Exit status.
    """
    command = arguments[0]
    if command in ("methods", "data"):
        return _list(command, arguments[1:])
    if not debug:
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")  # torch's own
    try:
        if command == "references":
            return run_references(arguments[1:], lambda rest: run(["fit", *rest], debug))
        StreamCLI(arguments)
    except SystemExit as stop:
        return int(stop.code or 0) if not isinstance(stop.code, str) else 1
    except KeyboardInterrupt:
        print(f"\nlightning-cil {command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        elif not _is_said_by_rank_0(error):
            print(f"lightning-cil {command}: {explain(error, arguments)}", file=sys.stderr)
            print("(--debug shows where it happened)", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _is_said_by_rank_0(error: Exception) -> bool:
    """Whether the first process of this machine meets the same error: wrong input is, what a batch raises is not.

    A loss that is not finite is raised on all processes together.
    """
    if isinstance(error, NonFiniteError):
        return bool(getattr(rank_zero_only, "rank", 0))
    if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
        return False
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    in_loop = any(name.startswith("lightning.pytorch.loops") for name in modules)
    return isinstance(error, UsageError | ValueError | FileNotFoundError) and not in_loop


def _remove_empty_run(trainer: Trainer) -> None:
    """A run that failed before its first step leaves no folder behind."""
    logger = trainer.run_logger if isinstance(trainer, IncrementalTrainer) else None
    if logger is None or not trainer.is_global_zero or trainer.global_step:
        return
    folder = Path(logger.log_dir)
    found = {p.name for p in folder.iterdir()} if folder.is_dir() else {""}
    if found <= {"config.yaml", "hparams.yaml", RunLogger.METRICS_FILE, FOLDER}:  # records of the untrained network
        shutil.rmtree(folder)


def _list(command: str, rest: list[str]) -> int:
    module, base = (
        (lightning_cil.methods, IncrementalModule)
        if command == "methods"
        else (lightning_cil.data, IncrementalDataModule)
    )
    if rest:
        print(f"usage: lightning-cil {command}\n\nList the {'methods' if command == 'methods' else 'data sets'}.")
        return 0 if rest[0] in ("-h", "--help") else 2
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isclass(thing) and issubclass(thing, base) and not inspect.isabstract(thing):
            print(f"{name:20s} {(thing.__doc__ or '').strip().splitlines()[0]}")
            memory = re.search(r"Memory: ([^.]+)\.", sys.modules[thing.__module__].__doc__ or "")
            if memory:
                print(f"{'':20s} memory: {' '.join(memory[1].split())}")
    option = "model" if command == "methods" else "data"
    print(f"\nOptions:  lightning-cil fit --{option}.help CLASS")
    return 0
