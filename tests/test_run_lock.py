"""One run at a time in a folder; a killed process lets go, its decoding processes do not hold on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_cil import run_lock
from lightning_cil.run_lock import busy, locked

HOLD = """
import os, sys, time
from pathlib import Path
from lightning_cil import run_lock
from lightning_cil.run_lock import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:
        print("forked", flush=True)
    time.sleep(60)
"""

LET_GO_LATE = """
import os, sys, time
from pathlib import Path
from lightning_cil import run_lock
from lightning_cil.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
    time.sleep(0.3)
"""


def test_a_second_run_is_refused_and_the_folder_is_free_afterwards(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert busy([tmp_path])
        with pytest.raises(ValueError, match=r"goes on in another process"), locked(tmp_path):
            pass
    assert not busy([tmp_path])
    with locked(tmp_path):
        pass


def test_a_kill_lets_go_even_if_a_forked_process_lives_on(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "forked\n"
        assert busy([tmp_path])
        holder.kill()
        holder.wait()
        assert not busy([tmp_path])
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()


def test_a_lock_that_comes_free_a_moment_later_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "GRACE", 60.0)
    with subprocess.Popen(
        [sys.executable, "-c", LET_GO_LATE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.stdin.write("let go\n")
        holder.stdin.flush()
        with locked(tmp_path):
            pass
