"""`python -m pretune`, and what the command `pretune` calls."""

from __future__ import annotations

from pretune.cli.app import app


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    app(prog_name="pretune")


if __name__ == "__main__":
    main()
