"""The command `lightning-cil`. Help and version are answered without importing torch."""

import os
import sys
from collections.abc import Sequence

USAGE = """\
usage: lightning-cil COMMAND [options]

Class-incremental learning on PyTorch Lightning: one command trains and scores a stream of tasks.

commands:
  fit        train and score a stream        lightning-cil fit --config examples/quickstart.yaml
  validate   score a checkpoint on the held-out data
  test       score a checkpoint on the test data of every task
  predict    classify a folder of images     lightning-cil predict --config RUN/config.yaml \\
                                                 --ckpt_path RUN/checkpoints/last.ckpt --images FOLDER
  references train what a run is measured against            lightning-cil references RUN
  report     tables, figures and a page from finished runs   lightning-cil report RUN [RUN ...] [--joint RUN]
  methods    list the methods
  data       list the data sets

options:
  -h, --help     this text; `lightning-cil COMMAND --help` lists the options of a command
  --version      the version
  --debug        show the Python traceback of an error (before or after the command)
"""

COMMANDS = ("fit", "validate", "test", "predict", "references", "report", "methods", "data")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments without the program's name; by default those of this process.

    Returns:
        Exit status: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"lightning-cil {version('lightning-cil')}")
        return 0
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if not arguments or arguments[0] not in COMMANDS:
        from difflib import get_close_matches

        given = arguments[0] if arguments else ""
        hint = "".join(f" Did you mean {m!r}?" for m in get_close_matches(given, COMMANDS, 1))
        print(
            f"lightning-cil: unknown command {given!r}; expected one of {', '.join(COMMANDS)}.{hint}", file=sys.stderr
        )
        return 2
    if arguments[0] == "report":
        from lightning_cil.report.command import run as run_report

        return run_report(arguments[1:], debug=debug)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # classes of the user's own, beside the config; `python -m` has it already
    try:
        from lightning_cil.cli import run
    except KeyboardInterrupt:  # imports take seconds
        print(f"\nlightning-cil {arguments[0]}: interrupted", file=sys.stderr)
        return 130
    return run(arguments, debug=debug)


if __name__ == "__main__":
    sys.exit(main())
