"""A real browser for tests: the headless Chromium inside kaleido's wheel, which needs no system library and no network.

Kaleido calls `Plotly.toImage` of a script that it is given; `browser.js` is that script, and loads a page instead.
"""

import json
import os
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SPY = """<script>
window.problems = [];
addEventListener("error", (e) => problems.push(`error: ${e.message || e.target.outerHTML.slice(0, 80)}`), true);
addEventListener("unhandledrejection", (e) => problems.push(`rejection: ${e.reason}`));
addEventListener("securitypolicyviolation", (e) => problems.push(`blocked: ${e.blockedURI}`));
for (const level of ["error", "warn"]) console[level] = (...words) => problems.push(`console: ${words.join(" ")}`);
</script>"""


def run(page: str, script: str, width: int = 1200) -> Any:
    """Load a page in a fresh browser and run the body of an async function of `window` and `document` on it.

    Args:
        page: HTML. Errors, warnings and blocked requests of it are collected in `window.problems`.
        script: JavaScript; what it returns must be JSON.
        width: Of the window, in CSS pixels.
    """
    assert "<head>" in page
    spec = find_spec("kaleido")
    assert spec is not None, "kaleido is not installed: `uv sync --frozen` installs what the tests need"
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "executable"
    program = next(p for p in (folder / "bin" / "kaleido", folder / "kaleido", folder / "kaleido.exe") if p.exists())
    places = {"LD_LIBRARY_PATH": "lib", "FONTCONFIG_PATH": "etc/fonts", "XDG_DATA_HOME": "xdg"}
    options = ["--disable-gpu", "--no-sandbox", "--disable-dev-shm-usage", "--disable-breakpad"]
    options.append("--allow-file-access-from-files")
    content = {"page": page.replace("<head>", f"<head>{SPY}", 1), "width": width, "script": script}
    command = [str(program), "plotly", f"--plotlyjs={Path(__file__).with_name('browser.js')}", *options]
    env = {**os.environ, **{name: str(folder / place) for name, place in places.items()}}
    request = json.dumps({"data": {"data": [content], "layout": {}}, "format": "svg"}) + "\n"
    status, stdout = next(filter(None, (_answer(command, folder, env, request) for _ in range(3))), (None, ""))
    assert status is not None, "the browser did not start, three times"
    answers = [json.loads(line) for line in stdout.splitlines()]
    assert len(answers) == 2, f"the browser ended with status {status} after {answers}"
    assert answers[1]["code"] == 0, answers[1]["message"]
    return json.loads(answers[1]["result"])


def _answer(command: list[str], folder: Path, env: dict[str, str], request: str) -> tuple[int, str] | None:
    """Exit status and output of the browser, or None if it hangs, as it does now and then before it loads anything."""
    program = subprocess.Popen(
        command, cwd=folder, env=env, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        stdout, _ = program.communicate(request, timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        program.communicate()
        return None
    return program.returncode, stdout
