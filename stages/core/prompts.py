"""Mistral's instruct format, to the token as mistral-common has it, and what of it is trained."""

import os
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import numpy

from stages.core.params import Prompt
from stages.core.tokenizer_files import wheel_file
from stages.runtime.errors import UserError

IGNORED = -100  # the label that the loss leaves out, as in torch.nn.CrossEntropyLoss

# The same ids as mistral-common's, for conversations without special-token look-alikes. v1 puts the system prompt into
# the first user turn; v2 and v3 put it into the last one, and strip blanks from the end of the assistant's turns.
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
    """Token ids of a conversation, and the labels: the ids of the assistant's turns, IGNORED elsewhere."""

    input_ids: list[int]
    labels: list[int]


Arrays = tuple[numpy.ndarray, numpy.ndarray]  # the same two, int32


class Encoder:
    """Conversations to token ids, the same as mistral-common's of the version `prompt.template` in finetuning mode.

    Its rules are spelled out here, and held to it by the tests, because it encodes one conversation at a time: in
    batches SentencePiece alone is several times as fast.
    """

    def __init__(self, prompt: Prompt):
        from sentencepiece import SentencePieceProcessor

        self.version, self.system = prompt.template, prompt.system
        self.pieces = SentencePieceProcessor(model_file=str(wheel_file(prompt.template)))
        self.bos, self.eos = self.pieces.bos_id(), self.pieces.eos_id()
        self.vocabulary = [self.pieces.id_to_piece(index) for index in range(len(self.pieces))]
        # In v1 the marks are text, from v2 on tokens that no text can produce.
        marks = [] if self.version == "v1" else [self.pieces.piece_to_id(mark) for mark in ("[INST]", "[/INST]")]
        segments = ([self.bos], [self.eos], marks[:1], marks[1:])
        self.bos_ids, self.eos_ids, self.before_user, self.after_user = (
            numpy.array(ids, dtype=numpy.int32) for ids in segments
        )

    def turns(self, messages: list[dict[str, str]]) -> list[tuple[str, bool]]:
        """(text, whether it is trained) of each turn but the system's, which goes into one of the user's."""
        brought = messages[0]["role"] == "system"
        system = messages[0]["content"] if brought else self.system
        rest = messages[1:] if brought else messages
        users = [index for index, message in enumerate(rest) if message["role"] == "user"]
        with_system = users[0] if self.version == "v1" else users[-1]
        found = []
        for index, message in enumerate(rest):
            text = message["content"]
            if message["role"] == "assistant":
                found.append((text if self.version == "v1" else text.rstrip(" "), True))
                continue
            if system and index == with_system:
                text = f"{system}\n\n{text}"
            found.append((f"[INST] {text} [/INST]" if self.version == "v1" else text, False))
        return found

    def arrays(self, batch: list[list[dict[str, str]]], threads: int) -> list[Arrays]:
        """Whole conversations. They are assembled all at once: one by one it took a sixth of SentencePiece's time."""
        if not batch:
            return []
        turns = [self.turns(messages) for messages in batch]
        texts = [text for each in turns for text, _ in each]
        encoded = iter(self.pieces.encode(texts, num_threads=threads, return_type="numpy"))
        segments, trained, counts = [], [], []
        for each in turns:
            before = len(segments)
            segments.append(self.bos_ids)
            trained.append(False)
            for _, is_answer in each:
                ids = next(encoded)
                added = (ids, self.eos_ids) if is_answer else (self.before_user, ids, self.after_user)
                segments += added
                trained += [is_answer] * len(added)
            counts.append(len(segments) - before)
        lengths = numpy.fromiter(map(len, segments), numpy.int64, len(segments))
        ids = numpy.concatenate(segments)
        labels = numpy.where(numpy.repeat(trained, lengths), ids, numpy.int32(IGNORED))
        ends = numpy.cumsum(lengths)[numpy.cumsum(counts) - 1].tolist()
        return [(ids[start:end], labels[start:end]) for start, end in pairwise([0, *ends])]

    def conversations(self, batch: list[list[dict[str, str]]]) -> list[Encoded]:
        """The same as lists, for scoring."""
        arrays = self.arrays(batch, threads=os.cpu_count() or 1)
        return [Encoded(ids.tolist(), labels.tolist()) for ids, labels in arrays]

    def conversation(self, messages: list[dict[str, str]]) -> Encoded:
        return self.conversations([messages])[0]

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """The conversation up to and with its last user turn, for generating the answer."""
        return self.conversation(messages).input_ids

    def decode(self, ids: list[int]) -> str:
        """The text of generated ids, control tokens left out."""
        return self.pieces.decode([token for token in ids if not self.pieces.is_control(token)])

    def spell(self, ids: list[int]) -> str:
        """The text of ids, control tokens spelled out."""
        runs = groupby(ids, key=self.pieces.is_control)
        return "".join(
            "".join(self.vocabulary[token] for token in run) if control else self.pieces.decode(list(run))
            for control, run in runs
        )


def check_base(encoder: Encoder, base: Path) -> None:
    """Stops where the base model's tokenizer is not the one that `prompt.template` encodes with."""
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
        index, found, expected = differing[0] if differing else (len(encoder.vocabulary), "more tokens", "none")
        raise UserError(
            f"prompt.template encodes with another vocabulary than {path}: {len(differing)} tokens differ, the first "
            f"is {index}, {found!r} there and {expected!r} here. Choose the template of that model"
        )
