"""Shows answers on a terminal, one token at a time."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from stages.core.prompts import Encoder
from stages.runtime.errors import UserError
from tools._generate.speakers import Speaker

if TYPE_CHECKING:
    import torch

# Characters that move the cursor, set colours or titles, or change the direction of writing. Line ends and tabs pass.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
REPLACEMENT = "\ufffd"  # stands for bytes that are not a whole character yet
HELP = """A line that ends with \\ continues on the next one.
/reset starts the conversation again, /help shows this, exit or quit ends (Ctrl-D does too). Ctrl-C stops an answer."""
ENDS = ("exit", "quit", "/exit", "/quit")


def escaped(text: str) -> str:
    r"""The text with control characters spelled out, such as \x1b, so that it cannot change the terminal."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def print_escaped(text: str) -> None:
    print(escaped(text), end="", flush=True)


class Stream:
    """A streamer for `continuations` that passes on whole characters as soon as they are complete."""

    def __init__(self, encoder: Encoder, give: Callable[[str], None]):
        self.encoder, self.give = encoder, give
        self.ids: list[int] = []
        self.asked, self.text, self.given = False, "", 0

    def put(self, ids: "torch.Tensor") -> None:
        if not self.asked:  # the first ids are the prompt's
            self.asked = True
            return
        self.ids += ids.tolist()
        self.text = self.encoder.decode(self.ids)
        self.advance(len(self.text.rstrip(REPLACEMENT)))

    def advance(self, end: int) -> None:
        if end > self.given:
            self.give(self.text[self.given : end])
            self.given = end

    def end(self) -> None:
        self.advance(len(self.text))


def stream_answer(speaker: Speaker, messages: list[dict[str, str]], seed: int, headed: bool) -> str:
    """Streams the answer to the messages, and returns it.

    Args:
        headed: Whether the model's name is printed first.

    Raises:
        KeyboardInterrupt: Ctrl-C; its argument is the answer so far.
    """
    encoder, decoding = speaker.prompts.encoder, speaker.prompts.decoding
    prompt = speaker.prompts.ids(messages)
    if headed:
        print(f"── {speaker.label}", flush=True)
    stream = Stream(encoder, print_escaped)
    try:
        (ids,) = speaker.answer([prompt], seed, stream)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(stream.text) from None
    print(flush=True)
    if ids[-1:] != [encoder.eos]:
        print(f"(cut off after --max-new-tokens {decoding.max_new_tokens})", file=sys.stderr, flush=True)
    return stream.text


def user(text: str) -> dict[str, str]:
    """A user's message. Typed bytes that are no Unicode become question marks."""
    return {"role": "user", "content": text.encode("utf-8", "replace").decode("utf-8")}


def typed_lines() -> Iterable[str]:
    """What the user types, until the input ends."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() then edits lines and remembers them
        print(HELP)
    while True:
        try:
            text = input("> " if terminal else "")
            while text.endswith("\\"):
                text = text[:-1] + "\n" + input("… " if terminal else "")
        except (EOFError, KeyboardInterrupt):
            if terminal:
                print()
            return
        yield text


def chat(speakers: list[Speaker], seed: int) -> None:
    """A conversation with each of the models. All get the same user's messages; each remembers its own answers."""
    talks: dict[str, list[dict[str, str]]] = {speaker.label: [] for speaker in speakers}
    turns = 0
    for text in typed_lines():
        word = text.strip()
        if word in ENDS:
            return
        if word == "/reset":
            talks = {label: [] for label in talks}
            continue
        if re.fullmatch(r"/\w+", word):
            print(HELP if word == "/help" else f"there is no command {escaped(word)}\n{HELP}")
            continue
        if not word:
            continue
        for speaker in speakers:
            messages = [*talks[speaker.label], user(text)]
            try:
                answer = stream_answer(speaker, messages, seed + turns, headed=len(speakers) > 1)
            except KeyboardInterrupt as stopped:
                answer = str(stopped)
                print("\n(stopped)", file=sys.stderr, flush=True)
            except UserError as error:
                print(f"{error}, or start again with /reset", file=sys.stderr, flush=True)
                continue
            talks[speaker.label] = [*messages, {"role": "assistant", "content": answer}]
        turns += 1
