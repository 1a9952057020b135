"""One run at a time in a folder; a killed process lets go, its decoding processes do not hold on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_cil.run_lock import is_locked, locked

HOLD = """
import os, sys, time
from pathlib import Path
from lightning_cil.run_lock import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_and_the_folder_is_free_afterwards(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(ValueError, match=r"goes on in another process"), locked(tmp_path):
            pass
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        pass


def test_a_kill_lets_go_even_if_a_forked_process_lives_on(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(tmp_path)
        holder.kill()
        holder.wait()
        assert not is_locked(tmp_path)
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()
