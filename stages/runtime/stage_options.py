"""What a person or DVC can ask of a stage on its command line.

The options are here and not in the stages, so that a better word in their help runs no stage again.
"""

from stages.runtime.command import command_parser

import argparse
from pathlib import Path

GIBIBYTE = 1 << 30


def positive(text: str) -> int:
    """A whole number from 1 on, as a type of argparse."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return number


def gibibytes(text: str) -> int:
    """A number of GiB in bytes, as a type of argparse."""
    try:
        size = int(float(text) * GIBIBYTE)
    except (ValueError, OverflowError):  # nan is no whole number, and infinity is too large for one
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of GiB above 0, such as 24")
    return size


def stage_options(stage: str, doc: str) -> argparse.Namespace:
    """The options that a stage was started with. Ends the process for --help and for a mistake.

    Args:
        stage: such as `clean`.
        doc: the docstring of its module.
    """
    parser = command_parser(f"stages.{stage}", doc)
    if stage == "train":
        parser.add_argument(
            "--plan",
            nargs="?",
            type=gibibytes,
            const=0,
            metavar="GIB",
            help="print how much memory each value of machine.memory takes, and train nothing. GIB: the memory of the "
            "GPU (default: the GPU of this machine, or its RAM if it has none)",
        )
    if stage == "tokenize":
        parser.add_argument(
            "--show", type=positive, metavar="N", help="print the first N rows of data/tokenized, and write nothing"
        )
    if stage == "evaluate":
        parser.add_argument("name", choices=("base", "tuned"), help="under which name the results are stored")
        parser.add_argument("weights", type=Path, metavar="FOLDER", help="the model: models/base or models/merged")
    if stage == "report":
        modes = parser.add_mutually_exclusive_group()
        modes.add_argument("--show", action="store_true", help="print the last results, and write the page of times")
        modes.add_argument(
            "--gate", action="store_true", help="check report.gates and exit with 1 where one failed; write nothing"
        )
    return parser.parse_args()
