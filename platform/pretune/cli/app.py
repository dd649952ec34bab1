"""The command line: the only parser of arguments. A request is checked completely before anything is started.

Ray, torch and FFCV are imported by what runs, never here: `--help`, `list`, `show` and a refusal answer at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from pretune.cli.ablate import ablate_command
from pretune.cli.check import check_command
from pretune.cli.clean import clean_command
from pretune.cli.compare import compare_command
from pretune.cli.data import data_command
from pretune.cli.embed import embed_command
from pretune.cli.enqueue import enqueue_command
from pretune.cli.eval import eval_command
from pretune.cli.export import export_command
from pretune.cli.finalize import finalize_command
from pretune.cli.import_weights import import_command
from pretune.cli.leaderboard import leaderboard_command
from pretune.cli.list import list_command
from pretune.cli.logs import logs_command
from pretune.cli.note import note_command
from pretune.cli.plan import plan_command
from pretune.cli.profile import profile_command
from pretune.cli.remove import remove_command
from pretune.cli.replay import replay_command
from pretune.cli.report import report_command
from pretune.cli.resume import resume_command
from pretune.cli.show import show_command
from pretune.cli.stop import stop_command
from pretune.cli.sweep import sweep_command
from pretune.cli.train import train_command
from pretune.cli.watch import watch_command

app = typer.Typer(
    name="pretune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Explore self-supervised image pretraining: sweep recipes on Ray, stop weak trials early, say what works.",
)
COMMANDS: dict[str, Callable[..., None]] = {
    "data": data_command,
    "train": train_command,
    "sweep": sweep_command,
    "plan": plan_command,
    "profile": profile_command,
    "ablate": ablate_command,
    "resume": resume_command,
    "replay": replay_command,
    "stop": stop_command,
    "enqueue": enqueue_command,
    "show": show_command,
    "watch": watch_command,
    "compare": compare_command,
    "leaderboard": leaderboard_command,
    "logs": logs_command,
    "note": note_command,
    "remove": remove_command,
    "clean": clean_command,
    "list": list_command,
    "check": check_command,
    "finalize": finalize_command,
    "eval": eval_command,
    "report": report_command,
    "export": export_command,
    "import": import_command,
    "embed": embed_command,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def print_version(wanted: bool) -> None:
    """Print the version and end, before anything else that was typed is looked at."""
    if wanted:
        from importlib.metadata import version

        print(f"pretune {version('pretune')}")
        raise typer.Exit()


@app.callback()
def without_a_command(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Options that stand before a command."""
