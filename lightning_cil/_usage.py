"""What the command line says when a config or an option is wrong: one short message in place of a parser's trace.

jsonargparse tries every type that an argument may have and reports all failures at once. `explain` walks the chain of
these exceptions to the one that matters. What it reads there: the head `Parser key "x":`, the leaves `Option 'x' is
not accepted` and `Expected a T. Got value: v`, and the list `exceptions` of a failed union. Read against jsonargparse
4.53; what is not recognised is shown as it is, shortened.
"""

import argparse
import inspect
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jsonargparse._typehints
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

LONGEST = 1000
LONGEST_VALUE = 80
WORDS = {
    "int": "an integer", "float": "a number", "bool": "true or false", "str": "a text", "NoneType": "null",
    "list": "a list", "dict": "a mapping", "tuple": "a list", "Sequence": "a list", "List": "a list",
}  # fmt: skip
SCALARS = {"int", "float", "bool"}


class UsageError(argparse.ArgumentError):
    """A wrong option or config, with the parser that met it."""

    def __init__(self, message: str, parser: "UsageParser", complete: bool = False) -> None:
        super().__init__(None, message)
        self.parser = parser
        self.complete = complete
        """Whether the message is for users as it is."""


@contextmanager
def own_names_first() -> Iterator[None]:
    """Inside, a short class name that several classes have means this package's one, as `EarlyStopping` does.

    jsonargparse refuses such a name, and lets nobody say which class is meant.
    """
    resolve = jsonargparse._typehints.resolve_class_path_by_name

    def resolve_own(wanted: Any, name: str) -> str:
        try:
            return str(resolve(wanted, name))
        except ValueError as error:
            match = _AMBIGUOUS.match(str(error))
            own = [path for path in match[2].split(", ") if path.startswith(f"{__package__}.")] if match else []
            if len(own) != 1:
                raise
            return own[0]

    jsonargparse._typehints.resolve_class_path_by_name = resolve_own
    try:
        yield
    finally:
        jsonargparse._typehints.resolve_class_path_by_name = resolve


_AMBIGUOUS = re.compile(r"Multiple subclasses with name (\w+)\. .*?: (.*)\.$", re.DOTALL)


class UsageParser(LightningArgumentParser):
    """A parser that raises in place of printing its usage, and takes no beginnings of options for options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a `UsageError`."""
        raise UsageError(message, self) from ex


@dataclass
class Problem:
    """What was wrong, and where."""

    kind: str
    """One of `KINDS`, of which the later ones say more."""
    text: str
    keys: tuple[str, ...] = ()
    value: Any = None
    expected: tuple[Any, ...] = ()
    parser: "UsageParser | None" = None
    owner: str = ""

    KINDS = ("type", "name", "class", "import", "own", "option", "required")

    @property
    def rank(self) -> tuple[int, int]:
        """Of several, the deepest and most telling one matters."""
        return len(self.keys), self.KINDS.index(self.kind)


def explain(error: BaseException, arguments: Sequence[str] = ()) -> str:
    """One message for an exception of the command line.

    Args:
        error: What was raised.
        arguments: Command and options that were given.

    Returns:
        What was given, what was expected, how to fix it; at most `LONGEST` characters, or more where it ends with
        commands to type, which are never cut.
    """
    text = _usage_text(error, arguments) if isinstance(error, UsageError) else _other_text(error, arguments)
    text = text.strip() or type(error).__name__
    if len(text) <= LONGEST:
        return text
    at = text.find("\n  lightning-cil ")
    commands = text[at:] if at >= 0 else ""
    room = max(LONGEST - len(commands), LONGEST // 4)
    said = text[:at] if commands else text
    return (said if len(said) <= room else said[: room - 2].rstrip() + " …") + commands


_NO_SUCH_KEY = re.compile(
    r"(?:Subcommand '\w+' does not accept option|Group '(\w+)' does not accept option|Option) '([^']*)'"
)


def _usage_text(error: UsageError, arguments: Sequence[str]) -> str:
    text = str(error)
    if error.complete:
        return text
    parser = _command_parser(error.parser, arguments)
    options = _options(parser)
    sections = sorted({o.split(".")[0] for o in options})
    if match := re.match(r"unrecognized arguments: (.*)", text, re.DOTALL):
        given = match[1].split()
        name = given[0].partition("=")[0]
        if not name.startswith("-"):
            return f"`{_short(match[1])}` belongs to no option; expected `--option value` pairs. " + _help(parser)
        near = _near(name[2:], [o for o in options if "." in o] if "." in name else options)
        near = near or _near(name[2:].split(".")[0], sections)
        return f"there is no option `{_short(name)}`.{_did_you_mean(near, '--')} {_help(parser)}"
    if match := re.match(r"the following arguments are required: (.*)", text, re.DOTALL):
        names = [n.rpartition(".")[2] for n in match[1].split(", ")]
        listed = {"model": "lightning-cil methods", "data": "lightning-cil data"}
        how = " and ".join(f"`--{n} CLASS` (see `{listed[n]}`)" if n in listed else f"`--{n}`" for n in names)
        return (
            f"no {' and no '.join(f'`{n}`' for n in names)} is given; expected {how}, or a config that names "
            f"{'it' if len(names) == 1 else 'them'}, such as `--config examples/quickstart.yaml`."
        )
    if match := _NO_SUCH_KEY.match(text):
        name = ".".join(p for p in (match[1], match[2]) if p)
        near = _near(name, options) or _near(name.split(".")[0], sections)
        return f"there is no key `{_short(name)}`.{_did_you_mean(near)} {_help(parser)}"
    if match := re.match(r"argument (\S+): expected one argument", text):
        name = match[1].rpartition("/")[2]
        wanted = "FILE" if name == "--config" else "VALUE"
        return f"`{name}` is the last option or has another one behind it; expected `{name} {wanted}`."
    if match := re.match(r"Problems parsing config: (.*)", text, re.DOTALL):
        why = _one_line(re.sub(r'in "<unicode string>", ', "", match[1]))
        return f"{_broken_config(arguments)} is no valid YAML: {why}. Correct the line, or check its indentation."
    if match := re.match(r"Unexpected config: (.*)", text, re.DOTALL):
        return (
            f"a config holds `{_short(match[1])}`; expected the sections `trainer`, `model` and `data`, as in "
            "examples/quickstart.yaml."
        )
    if match := re.match(r"Parser key \"config\": (.*)", text, re.DOTALL):
        return f"`--config`: {_one_line(match[1])}; expected a YAML file. Paths are relative to {Path.cwd()}."
    return _problem_text(_walk(error))


def _walk(error: BaseException) -> Problem:
    """Follow an exception to the problem behind it."""
    text = str(error)
    if frame := _frame(error, "raise_union_unexpected_value"):
        return _of_union(frame.f_locals)
    head = re.match(r'Parser key "([^"]*)"', text)
    cause = error.__cause__
    if cause is not None and (isinstance(error, argparse.ArgumentError) or not _own(error)):
        problem = _walk(cause)
        if head and (isinstance(error, TypeError) or not str(cause).startswith(head[0])):
            problem = replace(problem, keys=(*head[1].split("."), *problem.keys))
        if isinstance(error, UsageError) and problem.parser is None:
            problem = replace(problem, parser=error.parser, owner=problem.owner or _class_being_read(error))
        if match := re.match(r"Problem with given class_path '([^']*)'", text):
            if problem.kind in ("type", "import") and not isinstance(cause, argparse.ArgumentError):
                problem = replace(problem, kind="import", text=_with_place(cause), value=match[1])
            problem = replace(problem, owner=problem.owner or match[1])
        if problem.kind == "import" and problem.value is None:
            found = re.search(r"Got value: (.*)", text, re.DOTALL)
            problem = replace(problem, value=found[1] if found else None)
        return problem
    if match := re.match(r"Option '([^']*)' is not accepted", text):
        return Problem("option", text, (match[1].split(".")[0],))
    if match := re.match(r"Expected a(?:n)? (dot import path string): (.*)", text, re.DOTALL):
        return Problem("name", text, value=match[2])
    if match := re.match(r"Expected a (.*?)\. Got value: (.*)", text, re.DOTALL):
        return Problem("type", text, value=match[2], expected=(match[1],))
    if match := _AMBIGUOUS.match(text):
        return Problem(
            "own", f"several classes are called `{match[1]}`; expected the full path of one of them: {match[2]}."
        )
    if match := re.match(r"unrecognized arguments: --([^\s.=]+)", text):
        return Problem("option", text, (match[1],))
    if match := re.match(r"the following arguments are required: (.*)", text):
        return Problem("required", text, (match[1].split(", ")[0],))
    if match := re.match(r"Import path (\S+) does not correspond to a subclass of (\w+)", text):
        return Problem("class", f"{match[1]} is not derived from {match[2]}.")
    if text.startswith("Not a valid subclass"):
        return Problem("type", text)
    if text.startswith("Dict must include a class_path"):
        return Problem("type", text)
    if text.endswith("object has no attribute 'keys'") and not _own(error):
        return Problem("own", "it is no mapping; expected `init_args: {name: value, ...}`.", ("init_args",))
    if isinstance(error, ImportError | SyntaxError | AttributeError) and _is_import(error):
        return Problem("import", _with_place(error))
    if "<module>" in [f.f_code.co_name for f in _frames(error)] and _own(error):  # a module that fails
        return Problem("import", _with_place(error, always=True))
    return Problem("own" if _own(error) else "type", _with_place(error))


def _of_union(found: dict[str, Any]) -> Problem:
    """The most telling failure of all types that were tried."""
    value, subtypes = found["val"], tuple(found["subtypes"])
    nested = getattr(value, "key", None)
    problems = [_walk(e) for e in found["exceptions"]]
    best = max(problems, key=lambda p: p.rank)
    if best.kind in ("type", "name") and not best.keys:  # none fits: say what would
        value = best.value if best.kind == "name" else getattr(value, "val", value) if nested else value
        return Problem("type", best.text, (nested,) if nested else (), value, subtypes)
    if best.kind == "import" and best.value is None:
        best = replace(best, value=value)
    if best.kind == "class":
        return replace(best, expected=subtypes)
    if best.kind == "option" and nested and nested.rpartition(".")[2] == best.keys[-1] and len(best.keys) == 1:
        best = replace(best, keys=(nested,))
    owner = best.owner or _class_path(value)
    return replace(best, owner=owner)


def _problem_text(problem: Problem) -> str:
    key = ".".join(problem.keys)
    where = f"`{key}`" if key else "a value"
    owner = problem.owner.rpartition(".")[2]
    if problem.kind == "option":
        name = problem.keys[-1].rpartition(".")[2]
        near = _near(name, _options(problem.parser))
        accepts = ", ".join(sorted(_options(problem.parser))[:12])
        if owner == "Optimizer":  # the base of all: the config has `null`
            parent = key.rpartition(".")[0]
            return (
                f"{where} is an option of an optimizer, and none is chosen, as the method brings its own; expected its "
                f"class, too: `--{parent} torch.optim.SGD --{key} VALUE`."
            )
        return f"{where}: {owner or 'this class'} has no option {name!r}.{_did_you_mean(near)}" + (
            f" It has: {accepts}." if accepts and not near else ""
        )
    if problem.kind == "required":
        return (
            f"{where}: {owner or 'the class'} needs it, and it is not given. Give it, for example as `--{key} VALUE`."
        )
    if problem.kind == "import":
        value = _class_path(problem.value) or str(problem.value or problem.owner)
        if "to be a function that returns" in problem.text:
            wanted = "torch.optim.Optimizer" if key.endswith("optimizer") else "what it makes"
            return (
                f"{where}: the function `{_short(value)}` does not say what it returns; expected an annotation, as in "
                f"`def {value.rpartition('.')[2]}(parameters) -> {wanted}:`."
            )
        base = _base(problem.expected, key)
        return (
            f"{where}: the class `{_short(value)}` cannot be imported ({_one_line(problem.text)}); expected a class of "
            f"this package by its name, or one of yours as module.Class.{_did_you_mean(_near_classes(base, value))} "
            f"Modules are looked for in {Path.cwd()} and among the installed ones."
        )
    if problem.kind == "own":
        return f"{where}: {problem.text}"
    if problem.kind == "class":
        return f"{where}: {problem.text}{_classes(_base(problem.expected, key), '')}"
    classes = [t for t in problem.expected if inspect.isclass(t) and t.__name__ not in WORDS]
    scalar = any(inspect.isclass(t) and t.__name__ in SCALARS for t in problem.expected)
    value = problem.value
    makes = any("Callable" in str(t) for t in problem.expected)
    if (classes or makes or not problem.expected) and (shape := _wrong_shape(value)):
        return f"{where} {shape}"
    if (makes or not problem.expected) and isinstance(value, str):
        return f"{where}: there is no class `{_short(value)}`.{_classes(_base((), key), value)}"
    if classes and not scalar and isinstance(value, str):
        return f"{where}: there is no class `{_short(value)}`.{_classes(_base(problem.expected, key), value)}"
    if problem.expected:
        fitting = [t for t in problem.expected if not (scalar and t in classes)]
        if key in ("model", "data"):  # they can be left out of a config, not of a run
            fitting = classes
        names = list(dict.fromkeys(_type_name(t) for t in fitting))
        return f"{where} is {_shown(value)}; expected {' or '.join(names)}."
    return f"{where} cannot be read ({_short(problem.text)}); `--model.help CLASS` says what is expected."


def _wrong_shape(value: Any) -> str:
    """What is wrong with a mapping that should name a class; empty for anything else."""
    keys = list(value) if isinstance(value, dict) else list(vars(value)) if hasattr(value, "as_dict") else []
    strange = [str(k) for k in keys if k not in ("class_path", "init_args", "dict_kwargs")]
    expected = "expected `class_path`, the name of a class, and `init_args`"
    if strange and ("class_path" in keys or "init_args" in keys):
        return f"has {', '.join(f'`{_short(k)}`' for k in strange[:4])}; {expected}."
    if keys and "class_path" not in keys:
        return f"has the keys {', '.join(f'`{_short(k)}`' for k in keys[:4])}; {expected}."
    if keys and not isinstance(value["class_path"], str):
        return f"has `class_path: {_short(value['class_path'])}`; {expected}."
    return ""


def _wrong_section(arguments: Sequence[str]) -> str:
    """The section of a config that is no mapping, where the parser only says that something is none."""
    for path in _configs(arguments):
        if Path(path).is_file() and not _is_broken(path):
            config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            for name, value in config.items() if isinstance(config, dict) else ():
                if name in ("trainer", "model", "data") and not isinstance(value, dict):
                    return f"`{name}` is {_shown(value)} in {path}; expected a mapping."
    return ""


def _other_text(error: BaseException, arguments: Sequence[str]) -> str:
    """An error from building or running what the config says."""
    if isinstance(error, TypeError | KeyError | AttributeError) and not _own(error):
        section = _wrong_section(arguments)
        if section:
            return section
    problem = _walk(error)
    dest = next((f.f_locals["self"].dest for f in _frames(error) if _is_typehint(f)), "")
    if problem.kind == "own" or not dest:
        text = problem.text if problem.text else _with_place(error)
    else:
        text = _problem_text(problem)
    built = [f.f_locals.get("self") for f in _frames(error) if f.f_code.co_name == "__init__"]
    if not dest and (isinstance(error, MisconfigurationException) or any(isinstance(b, Trainer) for b in built)):
        dest = "trainer"
    return f"`{dest}`: {text}" if dest and not text.startswith(f"`{dest}") else text


# ---------------------------------------------------------------------- pieces


def _frames(error: BaseException) -> Iterator[FrameType]:
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield frame


def _frame(error: BaseException, name: str) -> FrameType | None:
    return next((f for f in _frames(error) if f.f_code.co_name == name and "exceptions" in f.f_locals), None)


def _is_typehint(frame: FrameType) -> bool:
    return frame.f_code.co_name == "instantiate_classes" and hasattr(frame.f_locals.get("self"), "dest")


def _own(error: BaseException) -> bool:
    """Whether the exception comes from a class that was being built, not from the parser."""
    frames = list(_frames(error))
    return bool(frames) and "jsonargparse" not in frames[-1].f_globals.get("__name__", "")


def _is_import(error: BaseException) -> bool:
    """Whether a class could not be imported, rather than not be built."""
    names = [f.f_code.co_name for f in _frames(error)]
    return isinstance(error, ImportError | SyntaxError) or not _own(error) or "<module>" in names


def _with_place(error: BaseException, always: bool = False) -> str:
    """The message; for what is no message to users, the exception's name and the line of theirs that raised it."""
    text = str(error).strip()
    if "Original Traceback (most recent call last)" in text:  # of a loader's worker process
        return re.sub(r"^\w+: ", "", text.splitlines()[-1])
    if text.startswith("Error(s) in loading state_dict"):
        first = _one_line(text.splitlines()[1]) if "\n" in text else text
        return (
            f"the checkpoint does not fit the network: {_short(first)} Use the model settings of the run that wrote it "
            "(its config.yaml), or start a new run."
        )
    plain = isinstance(error, ValueError | TypeError | OSError | RuntimeError | MisconfigurationException)
    mine = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
    raised = traceback.extract_tb(error.__traceback__)[-1:] if error.__traceback__ else []
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {text}"
    if plain and not always and not (mine and raised and raised[0] is mine[-1] and not text):
        return text if text else type(error).__name__
    place = f" ({mine[-1].filename}, line {mine[-1].lineno})" if mine else ""
    if not mine and (frames := list(_frames(error))) and not _is_import(error):
        place = f" (in {frames[-1].f_globals.get('__name__')}, `{frames[-1].f_code.co_name}`)"
    return f"{type(error).__name__}: {text}{place}"


def _is_users(filename: str) -> bool:
    package = str(Path(__file__).parent)
    return not filename.startswith((package, sys.prefix, sys.base_prefix, "<"))


def _class_being_read(error: BaseException) -> str:
    found = [f.f_locals.get("val_class") for f in _frames(error) if f.f_code.co_name == "adapt_class_type"]
    return found[-1].__name__ if found and inspect.isclass(found[-1]) else ""


def _command_parser(parser: Any, arguments: Sequence[str]) -> Any:
    """The parser of the command, where the error comes from the one above it."""
    commands = getattr(getattr(parser, "_subcommands_action", None), "_name_parser_map", {})
    return commands.get(arguments[0], parser) if arguments else parser


def _broken_config(arguments: Sequence[str]) -> str:
    """The config among the arguments that does not parse."""
    return next((path for path in _configs(arguments) if _is_broken(path)), "a config")


def _configs(arguments: Sequence[str]) -> list[str]:
    given = [b for a, b in pairwise(arguments) if a in ("-c", "--config")]
    given += [a.partition("=")[2] for a in arguments if a.startswith("--config=")]
    return given


def _is_broken(path: str) -> bool:
    try:
        yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return True
    except OSError:
        pass
    return False


def _class_path(value: Any) -> str:
    found = value.get("class_path", "") if hasattr(value, "get") else ""
    return found if isinstance(found, str) else ""


def _options(parser: Any) -> list[str]:
    """Names of a parser's options, dotted."""
    if parser is None:
        return []
    names = [o[2:] for a in parser._actions for o in a.option_strings if o.startswith("--")]
    return [
        n
        for n in names
        if not n.endswith("+") and not n.endswith(".help") and n not in ("help", "print_config", "print_shtab")
    ]


def _near(name: str, names: Iterable[str]) -> list[str]:
    by_case: dict[str, str] = {n.lower(): n for n in names}
    found = get_close_matches(name.lower(), by_case, 3, 0.6)
    if found and name:
        begins = [n for n in by_case if n.startswith(name.lower())]
        found = list(dict.fromkeys([*begins[:1], *found]))[:3]
    elif name:
        found = [n for n in by_case if n.startswith(name.lower())][:3]
    return [by_case[n] for n in found]


def _did_you_mean(near: Sequence[str], prefix: str = "") -> str:
    return f" Did you mean {' or '.join(f'`{prefix}{n}`' for n in near)}?" if near else ""


def _base(expected: Sequence[Any], key: str) -> type | None:
    """The class that a class given for a key must be derived from."""
    import torch

    for wanted in expected:
        if inspect.isclass(wanted) and wanted.__name__ not in WORDS:
            return wanted
    last = key.rpartition(".")[2]
    bases: dict[str, type] = {
        "model": LightningModule,
        "data": LightningDataModule,
        "callbacks": Callback,
        "optimizer": torch.optim.Optimizer,
        "lr_scheduler": torch.optim.lr_scheduler.LRScheduler,
    }
    return bases.get(last)


def _subclasses(base: type) -> Iterator[type]:
    children: list[type] = base.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)


def _classes(base: type | None, given: str) -> str:
    """The nearest classes and the first ones."""
    if base is None:
        return " Expected the name of a class, or module.Class for one of your own."
    every = _public(base)
    listed = [c.__name__ for c in every if _is_exported(c)] or [c.__name__ for c in every]
    shown = ", ".join(listed[:12]) + (" …" if len(listed) > 12 else "")
    near = _did_you_mean(_near_classes(base, given))
    return f"{near} There are: {shown}; a class of yours goes as module.Class."


def _near_classes(base: type | None, given: str) -> list[str]:
    return _near(given.rpartition(".")[2], [c.__name__ for c in _public(base)]) if base is not None else []


def _public(base: type) -> list[type]:
    found = {
        c.__name__: c
        for c in _subclasses(base)
        if not c.__name__.startswith("_") and not inspect.isabstract(c) and not _is_hidden(c)
    }
    return [found[name] for name in sorted(found)]


def _is_hidden(thing: type) -> bool:
    """Whether it is a base that classes of this package share."""
    return thing.__module__.startswith(f"{__package__}.") and "._" in thing.__module__


def _is_exported(thing: type) -> bool:
    module = ".".join(thing.__module__.split(".")[:2])
    return module.startswith("lightning_cil.") and thing.__name__ in getattr(sys.modules[module], "__all__", ())


def _type_name(wanted: Any) -> str:
    if isinstance(wanted, types.UnionType) or typing.get_origin(wanted) is typing.Union:
        return " or ".join(dict.fromkeys(_type_name(t) for t in typing.get_args(wanted)))
    name = wanted.__name__ if inspect.isclass(wanted) else str(wanted)
    if match := re.fullmatch(r"<class '([\w.]+)'>", name):
        name = match[1].rpartition(".")[2]
    if "Literal[" in name:
        return "one of " + name[name.index("[") + 1 : name.rindex("]")]
    bare = re.split(r"[\[(]", name)[0].rpartition(".")[2]
    if bare in ("list", "Sequence", "List", "tuple", "Tuple"):
        inner = getattr(wanted, "__args__", ())
        return f"a list of {inner[0].__name__}" if inner and inspect.isclass(inner[0]) else "a list"
    if bare == "Callable":
        return "a class that makes one"
    return WORDS.get(bare, f"{'an' if bare[:1] in 'AEIO' else 'a'} {bare}")


def _shown(value: Any) -> str:
    return f"`{_short(plain(value))}`"


def plain(value: Any) -> Any:
    """Without the parser's own containers, and lists for tuples, as a file gives them back."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    value = value.as_dict() if hasattr(value, "as_dict") else value
    return {name: plain(v) for name, v in value.items()} if isinstance(value, dict) else value


def _short(value: Any) -> str:
    text = _one_line(str(value))
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _help(parser: Any) -> str:
    command = getattr(parser, "prog", "lightning-cil fit").replace(" [options]", "")
    return f"`{command} --help` lists the options."


# ---------------------------------------------------------------------- what no parser looks at


def check_configs(arguments: Sequence[str], parser: UsageParser) -> None:
    """Refuse configs that are no text, and results of a run.

    Args:
        arguments: Command and options.
        parser: The parser of the command line.

    Raises:
        UsageError: With the first such file.
    """
    for path in _configs(arguments):
        if Path(path).name == "results.json" and Path(path).is_file():
            there = Path(path).with_name("config.yaml")
            raise UsageError(
                f"`--config {path}` is what a run found, not its settings; expected a YAML file"
                + (f", here {there}." if there.is_file() else "."),
                parser,
                complete=True,
            )
        try:
            Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"`--config {path}` is no UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}); "
                "expected a YAML file in UTF-8. Save it again in that encoding.",
                parser,
                complete=True,
            ) from None
        except (OSError, ValueError):  # the parser says what is wrong with it
            pass


def check_nulls(config: Any, owner: type, key: str) -> None:
    """The parser takes null for everything; refuse it where neither type nor default allow it.

    Args:
        config: The arguments of a class, as parsed.
        owner: The class.
        key: Where they are in the config.

    Raises:
        ValueError: With the first such argument.
    """
    class_path = _class_path(config)
    if class_path:
        module, _, last = class_path.rpartition(".")
        nested = getattr(sys.modules.get(module), last, None)
        if inspect.isclass(nested):
            check_nulls(config.get("init_args") or {}, nested, key)
        return
    for name, value in (vars(config) if hasattr(config, "as_dict") else config).items():
        where = f"{key}.{name}"
        if value is None:
            wanted = _annotation(owner, name)
            if wanted is not None:
                raise ValueError(f"`{where}` is `null`; expected {_type_name(wanted)}. Leave it out for its default.")
        for item in value if isinstance(value, list) else [value]:
            if _class_path(item):
                check_nulls(item, owner, where)


def _annotation(owner: type, name: str) -> Any:
    """The type of a constructor's argument that cannot be null, else `None`."""
    for base in owner.__mro__:
        make: Any = vars(base).get("__init__")
        parameter = inspect.signature(make).parameters.get(name) if make is not None else None
        if parameter is not None:
            hints = typing.get_type_hints(make) if isinstance(parameter.annotation, str) else {}
            wanted = hints.get(name, parameter.annotation)
            free = wanted is inspect.Parameter.empty or wanted is Any or type(None) in typing.get_args(wanted)
            return None if free or parameter.default is None else wanted
    return None
