"""The command line `dpsw`: its commands, and how mistakes end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from dpsw_ray.commands.account import account
from dpsw_ray.commands.audit import audit
from dpsw_ray.commands.compare import compare
from dpsw_ray.commands.data import data
from dpsw_ray.commands.ledger import ledger
from dpsw_ray.commands.runs import evaluate, flow, generate, plan
from dpsw_ray.errors import UserError, explain_os_error
from dpsw_ray.interrupts import exit_code, heed_sigterm

__all__ = ["guarded", "main"]

_INTERRUPTED = 130
"""What Typer returns after Ctrl-C."""

app = typer.Typer(
    help="Synthetic data with a privacy guarantee that holds.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

for command in (flow, generate, evaluate, plan, compare, account, audit):
    app.command()(command)
app.add_typer(ledger, name="ledger")
app.add_typer(data, name="data")


def main() -> None:
    """Runs the command line; mistakes the user can mend end with one sentence and exit code 2."""
    guarded(lambda: app(args=sys.argv[1:] or ["--help"], prog_name="dpsw", standalone_mode=False))


_UsageError: Any = typer.BadParameter.__mro__[1]
"""The class of everything wrong with options and arguments; newer versions of Typer bring their own Click."""


def guarded(command: Callable[[], Any]) -> None:
    """Runs a command line's Typer app.

    A mistake ends with one sentence and exit code 2, Ctrl-C with 130, SIGTERM (`ray job stop`) with 143.
    """
    heed_sigterm()
    try:
        interrupted = command() == _INTERRUPTED
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        _fail(explain_os_error(error))
    except _UsageError as error:
        _fail(_usage(error))
    except (KeyboardInterrupt, typer.Abort):
        interrupted = True
    if interrupted:
        print("Interrupted: the same command goes on from here.", file=sys.stderr)
        sys.exit(exit_code())


def _usage(error: Any) -> str:
    message = " ".join(error.format_message().split()).rstrip(".").replace("Input should be", "must be")
    return f"{message}; see `{error.ctx.command_path} --help`." if error.ctx else f"{message}."


def _fail(sentence: str) -> NoReturn:
    print(f"Error: {sentence}", file=sys.stderr)
    sys.exit(2)
