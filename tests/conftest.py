"""What all tests share: no network, one thread, no seed left behind, and the command line inside this process."""

import logging
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.ranks import free_port

if TYPE_CHECKING:
    from tests.resume.conftest import Runs

# Before torch is imported, and inherited by subprocesses. Tiny networks gain nothing from threads, and workers of
# pytest-xdist that have several each keep one another waiting.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # timm's weights are never downloaded by a test

ROOT = Path(__file__).parents[1]


class CommandResult(NamedTuple):
    """What a command returned and printed."""

    code: int
    stdout: str
    stderr: str


RunCli = Callable[..., CommandResult]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The same numbers in every run: which tests a worker has run before is never twice the same."""
    random.seed(item.nodeid)
    for name, function in (("numpy.random", "seed"), ("torch", "manual_seed")):  # unless they are not needed here
        if module := sys.modules.get(name):
            getattr(module, function)(random.getrandbits(32))


@pytest.fixture(autouse=True)
def _no_seed_left_behind() -> Iterator[None]:
    """`seed_everything` sets variables, from which the next test's stream would take its seed."""
    yield
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _ports_that_stay_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning asks the system for a free port, which a connection of another test may get before it is used."""
    if module := sys.modules.get("lightning.fabric.plugins.environments.lightning"):
        monkeypatch.setattr(module, "find_free_network_port", free_port)


@pytest.fixture
def run_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[RunCli]:
    """`run_cli("fit", "--config", path)`: the command in this process, in `tmp_path`; (code, stdout, stderr).

    Configs are found from the project's root or from `tmp_path`.
    """
    from lightning_cil import __main__, cli  # noqa: F401  # imported here, so that log handlers keep the true stderr

    capture: pytest.CaptureFixture[str] = request.getfixturevalue("capfd")
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> CommandResult:
        capture.readouterr()
        found = [str(ROOT / a) if str(a).endswith(".yaml") and (ROOT / str(a)).is_file() else str(a) for a in args]
        code = __main__.main(found)
        out, err = capture.readouterr()
        return CommandResult(code, out, err)

    yield run
    logger.setLevel(level)


@pytest.fixture(scope="session")
def runs() -> Iterator["Runs"]:
    """Starts runs and scripts in processes of their own, which need not import everything again."""
    from tests.resume.conftest import Runs

    server = Runs()
    yield server
    server.close()
