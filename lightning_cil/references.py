"""`lightning-cil references RUN`: train what the scores of a finished run are measured against.

From the run's own `config.yaml` two further runs can be made, with its data, seed, network, optimizer and epochs:

| folder | method | gives |
|---|---|---|
| `RUN/references/joint` | `Joint` | the bound: intransigence, the line above the curves |
| `RUN/references/joint_cumulative` | `Joint`, anew for every task | a bound after each task (`--cumulative`, instead) |
| `RUN/references/joint`, multi-label run | `MLJoint` | the same |
| `RUN/references/independent` | `Independent` | what each task is worth alone (`--independent`, also) |

`lightning-cil report` looks there. A reference that is complete is left alone; options that say another thing than its
config are refused. One that was interrupted goes on.
"""

import argparse
import importlib
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_cil.callbacks import StreamCallback
from lightning_cil.methods import Independent, Joint, MLJoint
from lightning_cil.stream_checkpoint import newest_checkpoint

FOLDER = "references"
METHODS: dict[str, type] = {"joint": Joint, "joint_cumulative": Joint, "independent": Independent}
CONFIG = "reference.yaml"
"""What a reference is trained from. Not `config.yaml`, which marks a run folder."""
NO_SETTINGS = ("stop_after_task", "trainer.stop_after_task", "ckpt_path", "trainer.enable_progress_bar", "debug")
"""Options that change nothing in a finished run."""


def reference_config(config: dict[str, Any], reference: str, root: Path, options: dict[str, Any]) -> dict[str, Any]:
    """A run's config with the method replaced.

    Args:
        config: The run's `config.yaml`.
        reference: One of `METHODS`.
        root: Where the reference's run folders are made.
        options: Further arguments of the method.

    Returns:
        A config for `lightning-cil fit`. Of the method's arguments those that the reference has are kept; callbacks
        that are parts of the method (memory, teacher, stages) are left out.

    Raises:
        ValueError: For a multi-label run and another reference than `joint`.
    """
    method = _method(str(config["model"]["class_path"]), reference)
    known = inspect.signature(method).parameters
    given = config["model"].get("init_args") or {}
    trainer = dict(config.get("trainer") or {})
    trainer["callbacks"] = [c for c in trainer.get("callbacks") or [] if not _is_part_of_method(c["class_path"])]
    trainer |= {"default_root_dir": str(root), "logger": None, "stop_after_task": None}
    arguments = {name: value for name, value in given.items() if name in known} | options
    return {
        **{key: config[key] for key in ("seed_everything", "data") if key in config},
        "trainer": trainer,
        "model": {"class_path": f"{method.__module__}.{method.__qualname__}", "init_args": arguments},
    }


def run_references(arguments: Sequence[str], fit: Callable[[list[str]], int]) -> int:
    """Train the references of a run.

    Args:
        arguments: Those of `lightning-cil references`.
        fit: Runs `lightning-cil fit` with arguments.

    Returns:
        Exit status, that of the first training that failed.

    Raises:
        FileNotFoundError: When the folder is no run that was made from a config.
        ValueError: When its config cannot be read or does not say how long to train, or a complete reference was
            trained with other settings than the options now say.
    """
    given, rest = _parser().parse_known_args(arguments)
    run = Path(given.run)
    config = _read(run / "config.yaml")
    joint = "joint_cumulative" if given.cumulative else "joint"
    for reference in [joint, *(["independent"] if given.independent else [])]:
        root = run / FOLDER / reference
        done = finished_reference(run, reference)
        if done is not None:
            _refuse_other_settings(done, root, rest)
            print(f"{reference}: complete already, {done}")
            continue
        options = {"joint_mode": "cumulative"} if reference == "joint_cumulative" else {}
        made = reference_config(config, reference, root, options)
        if "epochs" not in made["model"]["init_args"] and not any(a.startswith("--model.epochs") for a in rest):
            raise ValueError(
                f"{run / 'config.yaml'}: {config['model']['class_path']} has no `epochs`, so that nothing says how "
                f"long {reference} is to be trained. Say it: --model.epochs N"
            )
        root.mkdir(parents=True, exist_ok=True)
        path = root / CONFIG
        path.write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
        go_on = ["--ckpt_path", "last"] if newest_checkpoint(root) is not None else []
        status = fit(["--config", str(path), *go_on, *rest])
        if status:
            return status
    print(f"\nNext:  lightning-cil report {run}")
    return 0


def finished_reference(run: Path, reference: str) -> Path | None:
    """The complete run of a reference, the newest if there are several; `None` if there is none.

    Raises:
        ValueError: When a `results.json` there is no complete JSON.
    """
    for path in sorted((run / FOLDER / reference).glob("*/results.json"), key=lambda p: -p.stat().st_mtime):
        try:
            status = json.loads(path.read_text(encoding="utf-8"))["status"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no complete JSON of a run ({type(error).__name__}: {error}). It may be half-copied: copy "
                f"it again, or delete {path.parent} to train {reference} anew."
            ) from error
        if status == "complete":
            return path.parent
    return None


def _refuse_other_settings(done: Path, root: Path, options: Sequence[str]) -> None:
    """Raise where options say another thing than the config of the finished reference."""
    config = _read(done / "config.yaml")
    for name, value in _pairs(options):
        if name in NO_SETTINGS:
            continue
        found = _look_up(config, name)
        if isinstance(found, dict) and "class_path" in found and isinstance(value, str):
            value, found = (text.rpartition(".")[2] for text in (value, str(found["class_path"])))
        if value != found:
            has = "its config has no such key" if found is _ABSENT else f"it was trained with {found!r}"
            raise ValueError(
                f"{done} is complete already, but `--{name}` is {value!r} now and {has}. To train it anew delete the "
                f"folder {root}; to keep it leave the option out."
            )


_ABSENT = object()


def _pairs(options: Sequence[str]) -> list[tuple[str, Any]]:
    """Name and value of each option: `--a.b 3` and `--a.b=3` → ("a.b", 3); without a value: True."""
    found: list[tuple[str, Any]] = []
    for option in options:
        if option.startswith("--"):
            name, equals, value = option.removeprefix("--").partition("=")
            found.append((name, _value(value) if equals else True))
        elif found:
            found[-1] = (found[-1][0], _value(option))
    return found


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value  # YAML takes 1e-3 for text
    except (yaml.YAMLError, ValueError):
        return text


def _look_up(config: Any, name: str) -> Any:
    """The value that an option sets in a config; arguments of a class are below its `init_args`."""
    for part in name.split("."):
        if isinstance(config, dict) and part not in config and part not in ("class_path", "init_args"):
            config = config.get("init_args")
        if not isinstance(config, dict) or part not in config:
            return _ABSENT
        config = config[part]
    return config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "lightning-cil references",
        description="Train what the scores of a run are measured against, from its own config.yaml.",
        epilog="Further options are those of `lightning-cil fit`, for example --model.epochs 100 --trainer.devices 2.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--independent", action="store_true", help="also a network of its own for every task")
    parser.add_argument(
        "--cumulative",
        action="store_true",
        help="train Joint anew for every task, into joint_cumulative: a bound after each, not one at the end",
    )
    return parser


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected the folder of a run that `lightning-cil fit` made, such as "
            "runs/version_0. A run made in Python has no config: train `Joint` there in the same way as the method."
        )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["model"]["class_path"]
    except (yaml.YAMLError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not the config of a run ({error}); expected what `lightning-cil fit` wrote."
        ) from error
    return dict(config)


def _is_part_of_method(class_path: str) -> bool:
    kind = _class(class_path)
    return issubclass(kind, StreamCallback) and kind.part_of_method


def _method(class_path: str, reference: str) -> type:
    """The class of a reference of a run of another."""
    try:
        kind = getattr(_class(class_path), "label_kind", "single")
    except (ImportError, AttributeError, ValueError):  # a class of the user's own that is not there now
        kind = "single"
    if kind == "single":
        return METHODS[reference]
    if reference != "joint":
        raise ValueError(
            f"{class_path} is for multi-label data, and a multi-label run has the reference `joint` only. Leave "
            f"`--{'cumulative' if reference == 'joint_cumulative' else reference}` out."
        )
    return MLJoint


def _class(class_path: str) -> type:
    module, _, name = class_path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found
