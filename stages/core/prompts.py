"""Encodes conversations in Mistral's instruct format, token for token as mistral-common, with labels for training."""

import os
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import numpy

from stages.core.params import Prompt
from stages.core.records import Message, is_raw_text, is_trained
from stages.core.tokenizer_files import wheel_file
from stages.runtime.counts import plural
from stages.runtime.errors import UserError

IGNORED = -100  # the label of tokens that are not trained, as in torch.nn.CrossEntropyLoss

# These templates give mistral-common's ids for conversations without text that looks like a special token. v1 puts the
# system prompt into the first user turn. v2 and v3 put it into the last one, and strip blanks after assistant turns.
# v3 also renders tools, in the shape of OpenAI's interface.
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
V2_TEMPLATE = """\
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
V3_TEMPLATE = """\
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else none -%}
{%- set turns = messages[1:] if system is not none else messages -%}
{%- set users = turns | selectattr('role', 'equalto', 'user') | list -%}
{{- bos_token -}}
{%- set seen = namespace(users=0) -%}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{%- set seen.users = seen.users + 1 -%}
{%- if tools is defined and tools and seen.users == users | length -%}
{{- '[AVAILABLE_TOOLS] [' -}}
{%- for tool in tools -%}
{%- set function = tool['function'] -%}
{{- '{"type": "function", "function": {"name": ' + function['name'] | tojson + ', "description": ' -}}
{{- (function['description'] or '') | tojson + ', "parameters": ' + (function['parameters'] or {}) | tojson + '}}' -}}
{{- '' if loop.last else ', ' -}}
{%- endfor -%}
{{- '][/AVAILABLE_TOOLS]' -}}
{%- endif -%}
{%- if system is not none and seen.users == users | length -%}
{{- '[INST] ' + system + '\\n\\n' + message['content'] + '[/INST]' -}}
{%- else -%}
{{- '[INST] ' + message['content'] + '[/INST]' -}}
{%- endif -%}
{%- elif message['role'] == 'assistant' and message['tool_calls'] is defined and message['tool_calls'] -%}
{%- if message['content'] -%}
{{- raise_exception('a turn has a text and tool calls; this format has no form for both') -}}
{%- endif -%}
{{- '[TOOL_CALLS] [' -}}
{%- for call in message['tool_calls'] -%}
{%- set function = call['function'] -%}
{{- '{"name": ' + function['name'] | tojson + ', "arguments": ' -}}
{{- function['arguments'] if function['arguments'] is string else function['arguments'] | tojson -}}
{{- ', "id": ' + call['id'][-9:] | tojson + '}' + ('' if loop.last else ', ') -}}
{%- endfor -%}
{{- ']' + eos_token -}}
{%- elif message['role'] == 'tool' -%}
{%- set result = message['content'] -%}
{%- set is_json = result is string and (result[:1] in ['{', '['] or result.isdigit()) -%}
{{- '[TOOL_RESULTS] {"content": ' + (result if is_json else result | tojson) -}}
{{- ', "call_id": ' + message['tool_call_id'][-9:] | tojson + '}[/TOOL_RESULTS]' -}}
{%- elif message['role'] == 'assistant' -%}
{{- ' ' + message['content'].rstrip(' ') + eos_token -}}
{%- else -%}
{{- raise_exception('unknown role ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}"""
CHAT_TEMPLATES = {"v1": V1_TEMPLATE, "v2": V2_TEMPLATE, "v3": V3_TEMPLATE}


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
        around = {role: ([], ["</s>"]) for role in ("assistant", "text")}
        around["user"] = ([], []) if self.version == "v1" else (["[INST]"], ["[/INST]"])
        if self.version == "v3":
            around["tools"] = (["[AVAILABLE_TOOLS]"], ["[/AVAILABLE_TOOLS]"])
            around["tool_calls"] = (["[TOOL_CALLS]"], ["</s>"])
            around["tool"] = (["[TOOL_RESULTS]"], ["[/TOOL_RESULTS]"])
        # {role: the segments before the text of its turn, and after it}
        self.around = {role: tuple(list(map(self.mark, names)) for names in pair) for role, pair in around.items()}
        self.bos_ids = numpy.array([self.bos], dtype=numpy.int32)

    def mark(self, name: str) -> numpy.ndarray:
        return numpy.array([self.pieces.piece_to_id(name)], dtype=numpy.int32)

    def turns(self, messages: list[Message]) -> list[tuple[str, str, bool]]:
        """Returns (text, role, whether it is trained) for each turn.

        The system prompt goes into a user's turn. The tools come before the last user's turn.

        Raises:
            UserError: the conversation has tools, and the template has no form for them.
        """
        if is_raw_text(messages):
            return [(messages[0]["content"], "text", is_trained(messages[0]))]
        tools = None
        if messages[0]["role"] == "tools":
            tools, messages = messages[0], messages[1:]
        has_system = messages[0]["role"] == "system"
        system = messages[0]["content"] if has_system else self.system
        rest = messages[1:] if has_system else messages
        users = [index for index, message in enumerate(rest) if message["role"] == "user"]
        with_system = users[0] if self.version == "v1" else users[-1]
        turns = []
        for index, message in enumerate(rest):
            text, role = message["content"], message["role"]
            if role == "assistant":
                turns.append((text if self.version == "v1" else text.rstrip(" "), role, is_trained(message)))
                continue
            if role not in self.around or (tools and self.version != "v3"):
                raise UserError(
                    f"a conversation has tools, and prompt.template {self.version} has no form for them here. Set "
                    "prompt.template: v3 with a base of that version, such as Mistral-7B v0.3; or take the rows with "
                    "tools out of the data"
                )
            if role != "user":
                turns.append((text, role, is_trained(message)))
                continue
            if tools and index == users[-1]:
                turns.append((tools["content"], "tools", False))
            if system and index == with_system:
                text = f"{system}\n\n{text}"
            turns.append((f"[INST] {text} [/INST]" if self.version == "v1" else text, role, False))
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
            for _, role, is_trained_turn in conversation:
                start, end = self.around[role]
                added = [*start, next(encoded), *end]
                segments += added
                trained += [is_trained_turn] * len(added)
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
        """Encodes a conversation up to the answer that is to be generated."""
        return self.conversation(messages).input_ids

    def decode(self, ids: list[int]) -> str:
        """Returns the text of generated ids without control tokens."""
        return self.pieces.decode([token for token in ids if not self.pieces.is_control(token)])

    def begins_with(self, ids: list[int], mark: str) -> bool:
        """Whether the first of the generated ids is a control token, such as [TOOL_CALLS]."""
        return ids[:1] == [self.pieces.piece_to_id(mark)] and self.pieces.is_control(ids[0])

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
