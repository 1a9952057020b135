"""One HTML page that needs nothing else: no network, no script or style from elsewhere, figures inside."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lightning_cil.report.groups import Group, differing
from lightning_cil.report.runs import Run
from lightning_cil.report.tables import Table, protocol_name

HERE = Path(__file__).parent
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Browsers that know it fetch nothing, whatever the page says."""

Drawn = tuple[str, str, str]
"""Title, text for those who do not see the figure, data URL."""


def make_page(
    groups: Sequence[Group], tables: Sequence[Table], figures: Mapping[str, Sequence[Drawn]], notes: Sequence[str]
) -> str:
    """The page as text.

    Args:
        groups: All groups.
        tables: Tables of scores.
        figures: Heading → figures below it.
        notes: What a reader must know first.
    """
    runs = [run for group in groups for run in group.runs]
    warning = _list(notes, "warning") if notes else ""
    protocols = ", ".join(dict.fromkeys(protocol_name(g.first.protocol) for g in groups))
    pictures = "".join(
        f'<h3>{escape(heading)}</h3>\n<div class="figures">\n{"".join(map(_figure, drawn))}</div>\n'
        for heading, drawn in figures.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Class-incremental learning: {len(runs)} runs</title>
<link rel="icon" href="data:,">
<style>
{(HERE / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
<h1>Class-incremental learning: {len(runs)} runs, {len(groups)} rows</h1>
<p>{escape(protocols)}. Runs that differ in their seed only form a row. Press the head of a column to sort by it.</p>
{warning}
<h2 id="scores">Scores</h2>
{"".join(table.html() for table in tables)}
<h2 id="figures">Figures</h2>
{pictures}
<h2 id="settings">Settings</h2>
{_settings(groups)}
<h2 id="runs">Runs</h2>
{_runs(groups)}
</main>
<script>
{(HERE / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def _figure(drawn: Drawn) -> str:
    title, alt, url = drawn
    image = f'<img alt="{escape(alt)}" src="{url}">'
    return f"<figure>{image}<figcaption>{escape(title)}</figcaption></figure>\n"


def _settings(groups: Sequence[Group]) -> str:
    """A row for each setting, a column for each group; settings that differ come first and are marked."""
    flats = [group.first.settings for group in groups]
    different = differing(flats)
    names = list(dict.fromkeys(name for flat in flats for name in flat))
    same = [name for name in names if name not in different]
    head = "".join(f'<th scope="col">{escape(g.label)}</th>' for g in groups)
    rows = []
    for name in different:
        cells = "".join(f'<td class="text">{_value(flat, name)}</td>' for flat in flats)
        rows.append(f'<tr class="differs"><th scope="row">≠ {escape(name)}</th>{cells}</tr>')
    shared = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="text">{_value(flats[0], name)}</td></tr>' for name in same
    )
    table = (
        '<div class="wide" tabindex="0" role="region" aria-label="Settings that differ">\n<table id="differences">\n'
        f'<caption>Settings that differ between rows</caption>\n<thead><tr><th scope="col">setting</th>{head}</tr>'
        f"</thead>\n<tbody>{''.join(rows)}</tbody>\n</table>\n</div>\n"
    )
    missing = [g.label for g in groups if "config" not in g.first.results]
    note = f"<p>Of an older version, without settings: {escape(', '.join(missing))}.</p>" if missing else ""
    return (
        (table if different else "<p>All rows have the same settings.</p>")
        + note
        + '<details><summary>Settings that are the same in all rows</summary>\n<div class="wide" tabindex="0" '
        'role="region" aria-label="Settings that are the same">\n<table id="shared"><tbody>'
        f"{shared}</tbody></table></div></details>\n"
    )


def _value(flat: dict[str, Any], name: str) -> str:
    if name not in flat:
        return "–"
    value = flat[name]
    return escape(value if isinstance(value, str) else json.dumps(value))


def _runs(groups: Sequence[Group]) -> str:
    """Every run: where it is, what made it, and how to make it again."""
    heads = ("run", "row", "seed", "tasks", "class order", "made with", "again")
    machines = {text: f"E{i}" for i, text in enumerate(_environments(groups), 1)}
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    rows = "".join(_run(group, run, machines) for group in groups for run in group.runs)
    configs = "".join(_config(run) for group in groups for run in group.runs)
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Runs">\n<table id="run-list">\n'
        "<caption>Where the numbers come from and how to make each run again</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody>\n</table>\n</div>\n"
        + _list((f"{name}: {text}" for text, name in machines.items()), "notes")
        + configs
    )


def _environments(groups: Sequence[Group]) -> list[str]:
    """The different combinations of software and hardware, in the order of the runs."""
    return list(dict.fromkeys(_environment(run) for group in groups for run in group.runs))


def _environment(run: Run) -> str:
    parts = (run.results.get("versions", {}), run.results.get("hardware", {}))
    words = [", ".join(f"{k} {v}" for k, v in part.items() if v not in (None, "")) for part in parts]
    return "; ".join(word or "not recorded" for word in words)


def _run(group: Group, run: Run, machines: Mapping[str, str]) -> str:
    order = run.results.get("class_order_hash") or "not recorded"
    done = f"{run.tasks_done} of {run.num_tasks}"
    texts = (group.label, str(run.seed), done, order, machines[_environment(run)])
    cells = "".join(f'<td class="text">{escape(text)}</td>' for text in texts)
    return f'<tr><th scope="row">{escape(run.folder.as_posix())}</th>{cells}<td class="text">{_again(run)}</td></tr>\n'


def _again(run: Run) -> str:
    config = run.folder / "config.yaml"
    if not config.is_file():
        call = f"seed_everything({run.seed}); IncrementalTrainer(…).fit({run.method}(…), {run.data}(…))"
        return f"<code>{escape(call)}</code> with the settings above"
    resumed = sorted(path.name for path in run.folder.glob("config_resumed_*.yaml"))
    command = f"<code>lightning-cil fit --config {escape(shlex.quote(config.as_posix()))}</code>"
    return command + (f"; it was resumed with {escape(', '.join(resumed))}" if resumed else "")


def _config(run: Run) -> str:
    config = run.folder / "config.yaml"
    if not config.is_file():
        return ""
    text = escape(config.read_text(encoding="utf-8", errors="replace"))
    return f"<details><summary>{escape(config.as_posix())}</summary><pre>{text}</pre></details>\n"


def _list(items: Iterable[str], name: str) -> str:
    return f'<ul class="{name}">{"".join(f"<li>{escape(item)}</li>" for item in items)}</ul>'
