"""Answers of the models that the pipeline made: to a prompt, in a chat, or to the rows of a JSONL file.

    python -m tools.generate "Write a function that …"     one answer, streamed; - reads the prompt from stdin
    python -m tools.generate --compare "Write …"           the base's answer and the tuned model's
    python -m tools.generate                               a chat
    python -m tools.generate --input rows.jsonl --output answers.jsonl

Prompts are encoded as in training, with `prompt` of params.yaml, and tokens are chosen as in the evaluation. Each row
of the JSONL file has a `prompt` or `messages`. The output has the input's fields, the answer, and whether it ended. A
stopped run continues after the last whole row. With --compare --model adapter only one model is in memory: the base in
4 bits, first without and then with the adapter.
"""

from stages.runtime.command import command_parser, explained
from stages.runtime.stage_options import positive

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from stages.core.decoding import Decoding
from stages.core.models import free, make_deterministic
from stages.core.params import Params, load_params
from stages.core.prompts import Encoder
from stages.runtime.counts import plural
from stages.runtime.errors import UserError
from tools._generate.rows import AnswerJob, answer_rows
from tools._generate.speakers import Speaker, folder_of, is_adapter, load_pair, load_speaker, prompts_for, weight_hashes
from tools._generate.terminal import chat, stream_answer, user


def temperature(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or a positive number")
    return number


def argument_parser() -> argparse.ArgumentParser:
    parser = command_parser("tools.generate", __doc__)
    parser.add_argument("prompt", nargs="?", help="what to answer; - reads it from stdin; without it, a chat begins")
    parser.add_argument(
        *("--model", "-m"),
        default="tuned",
        help="base: models/base | tuned: models/merged | adapter: models/adapter on the base in 4 bits | the folder of "
        "a model, or of an adapter for models/base (default: tuned)",
    )
    parser.add_argument("--compare", action="store_true", help="answer with the base too")
    parser.add_argument("--system", help="a system prompt, instead of prompt.system of params.yaml")
    parser.add_argument("--max-new-tokens", type=positive, help=in_params("evaluate.max_new_tokens"), metavar="N")
    parser.add_argument(
        "--temperature", type=temperature, default=0.0, help="0 (default): the likeliest token", metavar="T"
    )
    parser.add_argument(
        "--seed", type=int, help=f"seed of the draws, with --temperature ({in_params('seed')})", metavar="N"
    )
    parser.add_argument("--input", type=Path, help="a JSONL file; each row has `prompt` or `messages`", metavar="FILE")
    parser.add_argument("--output", type=Path, help="where the answers to --input go", metavar="FILE")
    parser.add_argument("--field", default="answer", help="the output's field for the answer (default: answer)")
    parser.add_argument("--batch-size", type=positive, help=in_params("evaluate.batch_size"), metavar="N")
    return parser


def in_params(key: str) -> str:
    return f"default: {key} of params.yaml"


def parse_options(given: list[str] | None = None) -> argparse.Namespace:
    """The options as they were given, without the defaults of params.yaml, which --help does not need."""
    parser = argument_parser()
    options = parser.parse_args(given)
    if (options.input is None) != (options.output is None):
        parser.error("--input and --output belong together")
    if options.input and options.prompt:
        parser.error("a prompt and --input exclude each other")
    if options.input and options.compare:
        parser.error(
            "--compare is for the terminal. Answer the file with --model base --field base, and that output with "
            "--model tuned --field tuned"
        )
    if options.compare and options.model == "base":
        parser.error("--compare compares --model with the base: name another")
    if options.input and options.output.resolve() == options.input.resolve():
        parser.error("--output is --input")
    if options.prompt is not None and not options.prompt.strip():
        parser.error("the prompt is empty")
    return options


def read_options(params: Params, given: list[str] | None = None) -> argparse.Namespace:
    options = parse_options(given)
    settings = {"max_new_tokens": params.evaluate.max_new_tokens, "batch_size": params.evaluate.batch_size}
    for name, value in {**settings, "seed": params.seed}.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def speakers(options: argparse.Namespace, params: Params, encoder: Encoder, decoding: Decoding) -> Iterator[Speaker]:
    """The models to answer with. Each is loaded when it is asked for."""
    prompts = prompts_for(options.model, encoder, decoding)
    if options.compare and is_adapter(folder_of(options.model)):
        yield from load_pair(options.model, params, prompts)
        return
    if options.compare:
        yield load_speaker("base", params, prompts_for("base", encoder, decoding))
    yield load_speaker(options.model, params, prompts)


def answer_file(options: argparse.Namespace, params: Params, encoder: Encoder, decoding: Decoding) -> None:
    settings = {
        "model": str(folder_of(options.model)),
        "weights": weight_hashes(options.model),
        "quantization": params.quantization.model_dump() if is_adapter(folder_of(options.model)) else None,
        "template": params.prompt.template,
        "system": encoder.system,
        **vars(decoding),
        "seed": options.seed,
        "batch_size": options.batch_size,
        "field": options.field,
    }
    job = AnswerJob(options.input, options.output, options.field, options.batch_size, options.seed, settings)
    prompts = prompts_for(options.model, encoder, decoding)
    done, total = answer_rows(job, prompts, lambda: load_speaker(options.model, params, prompts))
    print(f"generate: {plural(total, 'row')} in {options.output}, of which {done} were there already")


def main(options: argparse.Namespace, params: Params) -> None:
    folder_of(options.model)  # first, before anything slow
    make_deterministic(options.seed, wanted=True, warn_only=True)
    prompt = params.prompt
    if options.system is not None:
        prompt = prompt.model_copy(update={"system": user(options.system)["content"]})
    encoder = Encoder(prompt)
    decoding = Decoding(options.max_new_tokens, options.temperature)
    if options.input:
        answer_file(options, params, encoder, decoding)
    elif options.prompt is None:
        chat(list(speakers(options, params, encoder, decoding)), options.seed)
    else:
        message = user(sys.stdin.read() if options.prompt == "-" else options.prompt)
        if not message["content"].strip():
            raise UserError("the prompt on standard input is empty. Write something there")
        for speaker in speakers(options, params, encoder, decoding):
            stream_answer(speaker, [message], options.seed, headed=options.compare)
            del speaker  # so that only one model is in memory
            free()


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # for terminals without Unicode
    if sys.stdin:
        sys.stdin.reconfigure(errors="surrogateescape")  # user() turns these into question marks
    with explained("generate"):
        parse_options()  # --help and mistakes first: they need no params.yaml
        loaded = load_params()
        main(read_options(loaded), loaded)
