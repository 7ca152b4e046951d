"""Encodes conversations in Mistral's instruct format, token for token as mistral-common, with labels for training."""

import os
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import numpy

from stages.core.params import Prompt
from stages.core.records import Message, is_text, is_trained
from stages.core.tokenizer_files import wheel_file
from stages.runtime.counts import plural
from stages.runtime.errors import UserError

IGNORED = -100  # the label of tokens that are not trained, as in torch.nn.CrossEntropyLoss

# These templates give mistral-common's ids for conversations without text that looks like a special token. v1 puts the
# system prompt into the first user turn. v2 and v3 put it into the last one, and strip blanks after assistant turns.
V1_TEMPLATE = """\
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else none -%}
{%- set turns = messages[1:] if system is not none else messages -%}
{{- bos_token -}}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{{- ' [INST] ' + (system + '\\n\\n' if loop.first and system else '') + message['content'] + ' [/INST]' -}}
{%- elif message['role'] == 'assistant' -%}
{{- ' ' + message['content'] + eos_token -}}
{%- else -%}
{{- raise_exception('unknown role ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}"""
V3_TEMPLATE = """\
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else none -%}
{%- set turns = messages[1:] if system is not none else messages -%}
{%- set users = turns | selectattr('role', 'equalto', 'user') | list -%}
{{- bos_token -}}
{%- set seen = namespace(users=0) -%}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{%- set seen.users = seen.users + 1 -%}
{%- if system is not none and seen.users == users | length -%}
{{- '[INST] ' + system + '\\n\\n' + message['content'] + '[/INST]' -}}
{%- else -%}
{{- '[INST] ' + message['content'] + '[/INST]' -}}
{%- endif -%}
{%- elif message['role'] == 'assistant' -%}
{{- ' ' + message['content'].rstrip(' ') + eos_token -}}
{%- else -%}
{{- raise_exception('unknown role ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}"""
CHAT_TEMPLATES = {"v1": V1_TEMPLATE, "v2": V3_TEMPLATE, "v3": V3_TEMPLATE}


@dataclass(frozen=True)
class Encoded:
    """The token ids of a conversation and its labels: the ids of the trained turns, and IGNORED elsewhere."""

    input_ids: list[int]
    labels: list[int]


TokenArrays = tuple[numpy.ndarray, numpy.ndarray]  # (input_ids, labels) of a conversation, int32


class Encoder:
    """Turns conversations into the ids that mistral-common's version `prompt.template` gives in finetuning mode.

    mistral-common encodes one conversation at a time, and SentencePiece is several times as fast in batches. So this
    class repeats its rules, and the tests compare the ids.
    """

    def __init__(self, prompt: Prompt):
        from sentencepiece import SentencePieceProcessor

        self.version, self.system = prompt.template, prompt.system
        self.pieces = SentencePieceProcessor(model_file=str(wheel_file(prompt.template)))
        self.bos, self.eos = self.pieces.bos_id(), self.pieces.eos_id()
        self.vocabulary = [self.pieces.id_to_piece(index) for index in range(len(self.pieces))]
        # SentencePiece marks the pieces that begin a word. A long text is cut before one of them.
        self.starts_word = numpy.array([piece.startswith("\u2581") for piece in self.vocabulary])
        # In v1 the marks are text. From v2 on they are tokens that no text can produce.
        marks = [] if self.version == "v1" else [self.pieces.piece_to_id(mark) for mark in ("[INST]", "[/INST]")]
        segments = ([self.bos], [self.eos], marks[:1], marks[1:])
        self.bos_ids, self.eos_ids, self.before_user, self.after_user = (
            numpy.array(ids, dtype=numpy.int32) for ids in segments
        )

    def turns(self, messages: list[Message]) -> list[tuple[str, bool, bool]]:
        """Returns (text, whether it is an answer, whether it is trained) for each turn.

        The system prompt goes into a user's turn. A text is like an answer without a question.
        """
        if is_text(messages):
            return [(messages[0]["content"], True, is_trained(messages[0]))]
        has_system = messages[0]["role"] == "system"
        system = messages[0]["content"] if has_system else self.system
        rest = messages[1:] if has_system else messages
        users = [index for index, message in enumerate(rest) if message["role"] == "user"]
        with_system = users[0] if self.version == "v1" else users[-1]
        turns = []
        for index, message in enumerate(rest):
            text = message["content"]
            if message["role"] == "assistant":
                turns.append((text if self.version == "v1" else text.rstrip(" "), True, is_trained(message)))
                continue
            if system and index == with_system:
                text = f"{system}\n\n{text}"
            turns.append((f"[INST] {text} [/INST]" if self.version == "v1" else text, False, False))
        return turns

    def arrays(self, batch: list[list[Message]], threads: int) -> list[TokenArrays]:
        """Encodes a batch of conversations with `threads` threads of SentencePiece.

        They are joined all at once: one by one, joining took a sixth of SentencePiece's time.
        """
        if not batch:
            return []
        turns = [self.turns(messages) for messages in batch]
        texts = [text for conversation in turns for text, _, _ in conversation]
        encoded = iter(self.pieces.encode(texts, num_threads=threads, return_type="numpy"))
        segments, trained, counts = [], [], []
        for conversation in turns:
            before = len(segments)
            segments.append(self.bos_ids)
            trained.append(False)
            for _, is_answer, is_trained_answer in conversation:
                ids = next(encoded)
                added = (ids, self.eos_ids) if is_answer else (self.before_user, ids, self.after_user)
                segments += added
                trained += [is_trained_answer] * len(added)
            counts.append(len(segments) - before)
        lengths = numpy.fromiter(map(len, segments), numpy.int64, len(segments))
        ids = numpy.concatenate(segments)
        labels = numpy.where(numpy.repeat(trained, lengths), ids, numpy.int32(IGNORED))
        ends = numpy.cumsum(lengths)[numpy.cumsum(counts) - 1].tolist()
        return [(ids[start:end], labels[start:end]) for start, end in pairwise([0, *ends])]

    def conversations(self, batch: list[list[Message]]) -> list[Encoded]:
        """Encodes a batch of conversations as lists, for scoring."""
        arrays = self.arrays(batch, threads=os.cpu_count() or 1)
        return [Encoded(ids.tolist(), labels.tolist()) for ids, labels in arrays]

    def conversation(self, messages: list[Message]) -> Encoded:
        return self.conversations([messages])[0]

    def prompt(self, messages: list[Message]) -> list[int]:
        """Encodes a conversation that ends with a user turn, to generate the answer to it."""
        return self.conversation(messages).input_ids

    def decode(self, ids: list[int]) -> str:
        """Returns the text of generated ids without control tokens."""
        return self.pieces.decode([token for token in ids if not self.pieces.is_control(token)])

    def spell(self, ids: list[int]) -> str:
        """Returns the text of ids with control tokens spelled out."""
        runs = groupby(ids, key=self.pieces.is_control)
        return "".join(
            "".join(self.vocabulary[token] for token in run) if control else self.pieces.decode(list(run))
            for control, run in runs
        )


def check_tokenizer_of_base(encoder: Encoder, base: Path) -> None:
    """Checks that the base model's tokenizer is the one that `prompt.template` encodes with.

    Raises:
        UserError: the base has no tokenizer.json, or its vocabulary differs.
    """
    from tokenizers import Tokenizer

    path = base / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: the base model must bring its tokenizer (see model.tokenizer)")
    own = Tokenizer.from_file(str(path))
    differing = [
        (index, own.id_to_token(index), piece)
        for index, piece in enumerate(encoder.vocabulary)
        if own.id_to_token(index) != piece
    ]
    if differing or own.get_vocab_size() != len(encoder.vocabulary):
        index, piece, expected = differing[0] if differing else (len(encoder.vocabulary), "more tokens", "none")
        raise UserError(
            f"prompt.template encodes with another vocabulary than {path}. They differ in "
            f"{plural(len(differing), 'token')}; the first is {index}, {piece!r} there and "
            f"{expected!r} here. Set prompt.template to the one of that model"
        )
