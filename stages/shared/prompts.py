"""Mistral's instruct format: mistral-common encodes, its segments say what is trained."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from stages.shared.errors import UserError
from stages.shared.params import Prompt
from stages.shared.vocabulary import wheel_file

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


class Encoder:
    """Conversations to token ids, exactly as mistral-common encodes them (`prompt.template` is its version)."""

    def __init__(self, prompt: Prompt):
        from mistral_common.protocol.instruct.validator import ValidationMode
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

        path = str(wheel_file(prompt.template))
        self.system = prompt.system
        self.complete = MistralTokenizer.from_file(path, mode=ValidationMode.finetuning)
        self.open = MistralTokenizer.from_file(path, mode=ValidationMode.test)
        instruct = self.complete.instruct_tokenizer
        self.bos, self.eos = instruct.tokenizer.bos_id, instruct.tokenizer.eos_id
        self.vocabulary = instruct.tokenizer.vocab()
        # (trained, length) of each turn that was encoded since `conversation` last began.
        self.segments: list[tuple[bool, int]] = []
        encode_user, encode_assistant = instruct.encode_user_message, instruct.encode_assistant_message
        instruct.encode_user_message = self.recorded(encode_user, trained=False)
        instruct.encode_assistant_message = self.recorded(encode_assistant, trained=True)

    def recorded(self, encode: Callable, trained: bool) -> Callable:
        """`encode`, which also notes how many tokens it gave: mistral-common joins them without saying where."""

        def encode_and_note(*arguments, **options):
            result = encode(*arguments, **options)
            self.segments.append((trained, len(result if trained else result[0])))
            return result

        return encode_and_note

    def request(self, messages: list[dict[str, str]]):
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        messages = copy.deepcopy(messages)
        if self.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        return ChatCompletionRequest(messages=messages)

    def conversation(self, messages: list[dict[str, str]]) -> Encoded:
        """A whole conversation, for training and for scoring."""
        self.segments.clear()
        ids = self.complete.encode_chat_completion(self.request(messages)).tokens
        labels = [IGNORED]  # <s>
        for trained, length in self.segments:
            labels += ids[len(labels) : len(labels) + length] if trained else [IGNORED] * length
        if len(labels) != len(ids):
            raise RuntimeError("mistral-common's turns do not add up to the conversation: its version is not supported")
        return Encoded(ids, labels)

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """The conversation up to and with its last user turn, for generating the answer."""
        return self.open.encode_chat_completion(self.request(messages)).tokens

    def spell(self, ids: list[int]) -> str:
        """The text of ids, control tokens spelled out."""
        is_control = self.complete.instruct_tokenizer.tokenizer.is_special
        runs = groupby(ids, key=is_control)
        return "".join(
            "".join(self.vocabulary[token] for token in run) if control else self.decode(list(run))
            for control, run in runs
        )

    def decode(self, ids: list[int]) -> str:
        """The text of generated ids, control tokens left out."""
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

        return self.complete.decode(ids, special_token_policy=SpecialTokenPolicy.IGNORE)


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
