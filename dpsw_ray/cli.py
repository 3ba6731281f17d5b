"""The command line `dpsw`: its commands, and how mistakes end."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from dpsw_ray.base.environment import check_arguments, check_environment
from dpsw_ray.base.errors import UserError, explain_os_error, one_line
from dpsw_ray.base.interrupts import exit_code, heed_sigterm
from dpsw_ray.commands.account import account
from dpsw_ray.commands.audit import audit
from dpsw_ray.commands.compare import compare
from dpsw_ray.commands.data import data
from dpsw_ray.commands.federated import federated
from dpsw_ray.commands.ledger import ledger
from dpsw_ray.commands.runs import evaluate, generate, plan, run
from dpsw_ray.commands.tune import tune

__all__ = ["guarded", "main"]

_LONGEST = 2000  # characters of a message
_INTERRUPTED = 130
"""What Typer returns after Ctrl-C."""

app = typer.Typer(
    help="Synthetic data with a privacy guarantee that holds.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

for command in (run, generate, evaluate, plan, compare, tune, federated, account, audit):
    app.command()(command)
app.command("flow", hidden=True)(run)
app.add_typer(ledger, name="ledger")
app.add_typer(data, name="data")


def main(*before: str) -> None:
    """Runs the command line; mistakes the user can mend end with one sentence and exit code 2.

    Args:
        before: words before the first argument, such as the name of a command.
    """
    words = [*before, *(sys.argv[1:] or ["--help"])]
    guarded(lambda: app(args=words, prog_name="dpsw", standalone_mode=False))


_UsageError: Any = typer.BadParameter.__mro__[1]
"""The class of everything wrong with options and arguments; newer versions of Typer bring their own Click."""


def guarded(command: Callable[[], Any]) -> None:
    """Runs a command line's Typer app.

    A mistake ends with one sentence and exit code 2, Ctrl-C with 130, SIGTERM (`ray job stop`) with 143.
    """
    heed_sigterm()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of few characters gets escapes for the others
            stream.reconfigure(errors="backslashreplace")
    try:
        check_arguments(sys.argv[1:])
        check_environment()
        interrupted = command() == _INTERRUPTED
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        _fail(explain_os_error(error))
    except _UsageError as error:
        _fail(_usage(error))
    except MemoryError:
        _fail(
            "There is not enough memory for this: choose fewer particles, frames, bins or records at a time."
        )
    except (KeyboardInterrupt, typer.Abort):
        interrupted = True
    if interrupted:
        print("Interrupted: the same command goes on from here.", file=sys.stderr)
        sys.exit(exit_code())


def _usage(error: Any) -> str:
    message = one_line(error.format_message(), 400).rstrip(".").replace("Input should be", "must be")
    return f"{message}; see `{error.ctx.command_path} --help`." if error.ctx else f"{message}."


def _fail(sentence: str) -> NoReturn:
    print(f"Error: {one_line(sentence, _LONGEST)}", file=sys.stderr)
    sys.exit(2)
