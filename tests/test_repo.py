"""The project's promises about itself: set-up commands, table of methods, import budget, layout, versions.

`python tests/test_repo.py --write` writes the table of methods into README.md.
"""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lightning_cil"
UV_RUN = "python3 -m pip install uv && python3 -m uv run --frozen"
SETUP = f"{UV_RUN} --no-dev lightning-cil fit --config examples/quickstart.yaml"
TESTS = f"{UV_RUN} pytest -n 2"
MARKS = ("<!-- methods -->", "<!-- /methods -->")
LARGEST_FILE = 100 * 1024


def modules(folder: str) -> list[Path]:
    """The public modules of a sub-package: neither `__init__`, nor `base`, nor private ones."""
    return sorted(p for p in (PACKAGE / folder).glob("*.py") if p.stem != "base" and not p.stem.startswith("_"))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def exported(package: str) -> list[str]:
    """`__all__` of a sub-package, without importing it."""
    for node in parse(PACKAGE / package / "__init__.py").body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    raise AssertionError(f"lightning_cil/{package}/__init__.py has no __all__")


def classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in parse(path).body if isinstance(node, ast.ClassDef)]


def method_classes(path: Path) -> list[str]:
    """The exported classes that a module of `methods/` defines."""
    return [node.name for node in classes(path) if node.name in exported("methods")]


def fenced_blocks(text: str) -> list[str]:
    return [body.strip() for body in re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)]


@cache
def project_files() -> list[Path]:
    """What git tracks; without git, the project's folders."""
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        found = [ROOT / name for name in listed.stdout.splitlines()]
    except (OSError, subprocess.CalledProcessError):
        folders = [".ci", "benchmarks", "examples", "lightning_cil", "tests"]
        found = [p for folder in folders for p in (ROOT / folder).rglob("*") if "__pycache__" not in p.parts]
        found += ROOT.glob("*")
    return [p for p in found if p.is_file()]


# ---------------------------------------------------------------------- README


def method_table() -> str:
    """The table of methods: each row from the first line of a class docstring and the `Memory:` of its module's.

    The line reads "<what it is> (<paper, equations>, <link>)<; what it needs>.".
    """
    rows = ["| method | what it is | source | memory |", "|---|---|---|---|"]
    found = {name: path for path in modules("methods") for name in method_classes(path)}
    for name in sorted(found, key=str.lower):
        module = parse(found[name])
        node = next(n for n in classes(found[name]) if n.name == name)
        line = (ast.get_docstring(node) or "").split("\n", 1)[0]
        parts = re.fullmatch(r"(?P<what>.+?) \((?P<source>.+), (?P<link>https://[^\s)]+)\)(?P<rest>.*)\.", line)
        memory = re.search(r"Memory: (.+?)\.(?:\s|$)", ast.get_docstring(module) or "", flags=re.DOTALL)
        assert parts, (
            f"{name}: the docstring starts {line!r}; expected 'What it is (paper, equations, https://…); rest.'"
        )
        assert memory, f"{found[name].name}: the module's docstring has no sentence 'Memory: …'"
        brief = re.sub(r"\s*\(.*\)$", "", " ".join(memory[1].split()), flags=re.DOTALL)
        rows.append(f"| `{name}` | {parts['what']}{parts['rest']} | [{parts['source']}]({parts['link']}) | {brief} |")
    return "\n".join(rows)


def with_table(readme: str) -> str:
    """README.md's text with the current table between the marks."""
    before, _, rest = readme.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    return f"{before}{MARKS[0]}\n{method_table()}\n{MARKS[1]}{after}"


def test_readme_starts_with_the_two_set_up_commands():
    assert fenced_blocks((ROOT / "README.md").read_text(encoding="utf-8"))[:2] == [SETUP, TESTS]


def test_ci_runs_the_readmes_test_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    listed = subprocess.run([script, "--list"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert TESTS in listed


def test_readme_lists_the_methods_as_their_docstrings_describe_them():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == with_table(readme), "Run `python tests/test_repo.py --write`"


def test_files_that_the_readme_links_to_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", readme) if not link.startswith("https://")]
    assert [link for link in links if not (ROOT / link).exists()] == []


# ---------------------------------------------------------------------- modules


@pytest.mark.parametrize("path", modules("methods"), ids=lambda p: p.stem)
def test_every_method_has_a_test_and_an_example(path):
    examples = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "examples").rglob("*.yaml"))
    used = set(re.findall(r"^\s*class_path: (?:[\w.]+\.)?(\w+)\s*$", examples, flags=re.MULTILINE))
    assert (ROOT / "tests" / "methods" / f"test_{path.stem}.py").is_file()
    assert set(method_classes(path)) - used == set(), "not in any config below examples/"


@pytest.mark.parametrize("path", modules("methods"), ids=lambda p: p.stem)
def test_every_method_is_exported(path):
    assert method_classes(path), f"lightning_cil/methods/__init__.py exports no class of {path.name}"


@pytest.mark.parametrize("path", modules("methods") + modules("losses"), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_docstring_names_its_source(path):
    text = ast.get_docstring(parse(path)) or ""
    assert "https://" in text
    assert re.search(r"\bEq\. |\bequation", text), "neither 'Eq. <number>' nor 'no equation'"


@pytest.mark.parametrize("path", [p for f in ("methods", "data", "callbacks") for p in (PACKAGE / f).glob("*.py")])
def test_constructors_name_every_argument(path):
    """A misspelt key in a config is refused only where the signature is explicit."""
    loose = [
        node.name
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ClassDef)
        for f in node.body
        if isinstance(f, ast.FunctionDef) and f.name == "__init__" and (f.args.kwarg or f.args.vararg)
    ]
    assert loose == []


def test_layers_import_downwards_only():
    command = [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


# ---------------------------------------------------------------------- imports


def loaded_by(code: str) -> set[str]:
    """Top-level modules that are loaded after `code` ran in a fresh interpreter."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return set(output.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import lightning_cil",
        "from lightning_cil.__main__ import main; main(['--version'])",
        "from lightning_cil.__main__ import main; main(['--help'])",
        "from lightning_cil.__main__ import main; main([])",
        "from lightning_cil.__main__ import main; main(['fitt'])",
    ],
)
def test_the_package_and_its_help_do_without_torch(code):
    assert "torch" not in loaded_by(code)


LAYERS = {
    "types": ["lightning", "torchmetrics", "torchvision", "timm"],
    "losses": ["lightning", "torchmetrics", "torchvision", "timm"],
    "replay": ["lightning", "torchmetrics", "torchvision", "timm"],
    "schedulers": ["lightning", "torchmetrics", "torchvision", "timm"],
    "networks": ["lightning", "torchmetrics"],
    "metrics": ["lightning", "timm"],
}
"""Package -> what importing it must not load."""


def test_lower_layers_load_only_what_they_need():
    code = f"""
import importlib, os, sys, torch
for package in {list(LAYERS)}:
    if os.fork() == 0:
        importlib.import_module("lightning_cil." + package)
        print(package, *{{name.partition(".")[0] for name in sys.modules}}, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, package
"""
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loaded = {line.split()[0]: set(line.split()[1:]) for line in output.splitlines()}
    assert {package: sorted(loaded[package].intersection(without)) for package, without in LAYERS.items()} == {
        package: [] for package in LAYERS
    }


# ---------------------------------------------------------------------- files and versions


def project_version() -> str:
    table = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("\n[project]\n")[2].partition("\n[")[0]
    return re.search(r'^version = "([^"]+)"$', table, flags=re.MULTILINE)[1]


def test_citation_is_valid_and_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == project_version()
    assert citation["license"] == "Apache-2.0"
    assert citation["title"]
    assert citation["message"]
    assert citation["authors"]


def test_changelog_starts_with_unreleased_changes_and_then_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[([^\]]+)\]", text, flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1:2] in ([], [project_version()])


def test_changelog_has_nothing_twice():
    """Merges that keep both sides leave an entry, or its last lines, behind."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    starts = [entry[:35] for entry in re.split(r"^- ", text, flags=re.MULTILINE)[1:]]
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    assert [s for s in set(starts) if starts.count(s) > 1] == []
    assert [s for s in set(lines) if lines.count(s) > 1] == []
    assert max(map(len, text.splitlines())) <= 125


def test_no_file_names_a_path_of_one_machine():
    own_path = re.compile(r"(?<![\w.~$}\])-])/(?:work|tmp|root|home)/\w")
    found = []
    for path in project_files():
        if path.name == "uv.lock":
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        found += [
            f"{path.relative_to(ROOT)}:{n}: {line.strip()}" for n, line in enumerate(lines, 1) if own_path.search(line)
        ]
    assert found == []


def test_files_are_small():
    large = [
        str(p.relative_to(ROOT)) for p in project_files() if p.stat().st_size > LARGEST_FILE and p.name != "uv.lock"
    ]
    assert large == []


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_repo.py --write")
    readme_path = ROOT / "README.md"
    readme_path.write_text(with_table(readme_path.read_text(encoding="utf-8")), encoding="utf-8")
