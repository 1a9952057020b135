"""The command `lightning-cil report`."""

import argparse
import sys
import traceback
from collections.abc import Sequence

DESCRIPTION = """\
Tables (Markdown, CSV, LaTeX), figures (SVG, PNG) and one HTML page from any number of runs. Reads results.json only.
Runs that differ in their seed only are averaged."""


def make_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="lightning-cil report", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="a run folder, a folder with runs below, or a results.json"
    )
    parser.add_argument(
        "--joint",
        metavar="RUN",
        action="append",
        default=[],
        help="finished run of Joint: the bound of figures, and a* of I",
    )
    parser.add_argument("--out", metavar="DIR", default="report", help="where the report goes (default: report)")
    parser.add_argument("--published", metavar="FILE", help="YAML file with published numbers, shown beside ours")
    parser.add_argument(
        "--paper",
        metavar="NAME",
        help="also a paper's tables and figures, its numbers beside ours: mcil, nfl, rebll, or a YAML file",
    )
    parser.add_argument(
        "--processes",
        metavar="N",
        type=int,
        help="how many processes draw the figures (default: one for each core, at most 8, for 60 figures or more)",
    )
    parser.add_argument(
        "--average_different_orders", action="store_true", help="average runs with different class orders or splits"
    )
    return parser


def run(arguments: Sequence[str], debug: bool = False) -> int:
    """Make a report.

    Args:
        arguments: Options, without the command's name.
        debug: Show the traceback of an error.

    Returns:
        Exit status: 0, 1 for an error, 2 for wrong usage.
    """
    try:
        options = make_parser().parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        from lightning_cil.report.collection import load_runs
        from lightning_cil.types import SCENARIOS

        runs = load_runs(
            options.runs,
            joint=options.joint,
            published=options.published,
            average_different_orders=options.average_different_orders,
            paper=options.paper,
        )
        page = runs.write(options.out, options.processes)
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"lightning-cil report: {error or type(error).__name__}", file=sys.stderr)
            print("(--debug shows where it happened)", file=sys.stderr)
        return 1
    for table in (*(runs.table(scenario) for scenario in SCENARIOS), runs.multilabel_table(), runs.multimodal_table()):
        if table is not None:
            print(table.markdown(formulas=False))
    for table in runs.paper_tables():
        if any(row.n for row in table.rows):
            print(table.markdown(formulas=False))
    print(f"{len(runs)} runs in {len(runs.groups)} rows. Report: {page}   (tables and figures beside it)")
    for note in runs.notes:
        print(f"note: {note}", file=sys.stderr)
    return 0
