"""Mistral's instruct format: mistral-common encodes, its control tokens say what is trained."""

import copy
from dataclasses import dataclass
from pathlib import Path

from stages.shared.errors import UserError
from stages.shared.params import Prompt

IGNORED = -100  # the label that the loss leaves out, as in torch.nn.CrossEntropyLoss
TOKENIZER_FILES = {"v3": "mistral_instruct_tokenizer_240323.model.v3"}

# The same ids as mistral-common's v3, for conversations without special-token look-alikes. mistral-common puts the
# system prompt into the last user turn and strips blanks from the end of the assistant's.
CHAT_TEMPLATES = {
    "v3": """\
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
{%- set ns = namespace(text=message['content']) -%}
{{- ' ' + ns.text.rstrip(' ') + eos_token -}}
{%- else -%}
{{- raise_exception('unknown role ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}"""
}


def wheel_file(template: str) -> Path:
    """The sentencepiece model of a template, in the mistral-common wheel."""
    import mistral_common

    return Path(mistral_common.__file__).parent / "data" / TOKENIZER_FILES[template]


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

        path = wheel_file(prompt.template)
        self.system = prompt.system
        self.complete = MistralTokenizer.from_file(path, mode=ValidationMode.finetuning)
        self.open = MistralTokenizer.from_file(path, mode=ValidationMode.test)
        instruct = self.complete.instruct_tokenizer
        self.bos, self.eos = instruct.tokenizer.bos_id, instruct.tokenizer.eos_id
        self.end_of_user = instruct.END_INST
        self.vocabulary = instruct.tokenizer.vocab()

    def request(self, messages: list[dict[str, str]]):
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        messages = copy.deepcopy(messages)
        if self.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        return ChatCompletionRequest(messages=messages)

    def conversation(self, messages: list[dict[str, str]]) -> Encoded:
        """A whole conversation, for training and for scoring."""
        ids = self.complete.encode_chat_completion(self.request(messages)).tokens
        # In v3 [/INST] and </s> are control tokens, which no text can produce: they bound the assistant's turns.
        labels, trained = [], False
        for token in ids:
            labels.append(token if trained else IGNORED)
            trained = token == self.end_of_user or (trained and token != self.eos)
        return Encoded(ids, labels)

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """The conversation up to and with its last user turn, for generating the answer."""
        return self.open.encode_chat_completion(self.request(messages)).tokens

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
