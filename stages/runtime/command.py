"""What all commands share: their command line, and the line that a user reads instead of a traceback.

Each module that a person starts imports this one before all others, which ruff sees to. So a missing library ends in
one line, whichever module needs it first. For the same reason this module needs none itself.
"""

import argparse
import atexit
import contextlib
import logging
import os
import select
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from stages.runtime.errors import UserError
from stages.runtime.failures import explain_os_error

ENVIRONMENT = Path(__file__).parents[2] / ".venv"
OWN_PACKAGES = ("stages", "tools", "bench", "tests")
# No command but the two downloads talks to the network, and nothing reports to anybody.
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def command_parser(module: str, doc: str) -> argparse.ArgumentParser:
    """The parser of a command. Its help is the docstring of the module, with the options after the first paragraph.

    Args:
        module: the name after `python -m`.
        doc: the docstring, with examples.
    """
    intro, _, rest = doc.strip().partition("\n\n")
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=intro,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


@contextlib.contextmanager
def explained(name: str, online: bool = False) -> Iterator[None]:
    """Runs the work of the stage or tool `name`, without the network unless `online`.

    A user's mistake and a full disk end the process with one message and exit code 1. Ctrl-C ends it with 130.
    """
    os.environ |= QUIET
    warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what TRL passes to it
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for a CPU kernel from the hub
    if not online:
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    except UserError as error:
        sys.exit(f"{name}: {error}")
    except OSError as error:
        if not (text := explain_os_error(error)):
            raise
        sys.exit(f"{name}: {text}")
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print(f"\n{name}: stopped", file=sys.stderr)
        sys.exit(130)


def environment_advice() -> str:
    """What to do where a library is missing."""
    if ENVIRONMENT.is_dir() and Path(sys.prefix) != ENVIRONMENT:
        return f"Run `. {os.path.relpath(ENVIRONMENT / 'bin/activate')}`, then the same command again"
    if sys.prefix != sys.base_prefix:
        return "Run `python -m pip install -r requirements.txt`"
    return "Run `make run`, which installs what is needed into .venv, or see README.md for the same without make"


def missing_library(error: BaseException) -> str | None:
    """The name of the library that an import did not find, or None for another error."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    return name if name and name.partition(".")[0] not in OWN_PACKAGES else None


def reader_has_left() -> bool:
    """Whether nobody reads what this process prints, as after `| head`. What it still prints then goes nowhere."""
    left = False
    for number in (1, 2):
        poll = select.poll()
        poll.register(number, 0)  # errors are told in any case
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            left = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return left


def report_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Ends the process for an error that nobody caught: with a line, with nothing, or with Python's own traceback."""
    if library := missing_library(error):
        name = getattr(sys.modules["__main__"].__spec__, "name", "").rpartition(".")[2] or "python"
        print(
            f"{name}: the library {library} is not installed for {sys.executable}. {environment_advice()}",
            file=sys.stderr,
        )
    elif not (isinstance(error, BrokenPipeError) and reader_has_left()):
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = report_uncaught
atexit.register(reader_has_left)  # what is printed last is written only now
