"""The Modelfiles in docs/serving.md render what the chat template renders, but for the `<s>` that Ollama's runner adds.

Ollama runs them through Go's text/template. That small part of it which they use is spelled out here, and held against
Go itself where there is one.
"""

import json
import re
import shutil
import subprocess
from functools import cache

import pytest
from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stages.core.prompts import CHAT_TEMPLATES
from tests.support.conversations import PLAIN
from tests.support.project import ROOT

PAGE = (ROOT / "docs/serving.md").read_text()
MODELFILES = re.findall(r"(?m)^```dockerfile\n(.*?)^```", PAGE, re.DOTALL)
TEMPLATES = dict(
    zip(("v3", "v1"), (re.search('TEMPLATE """(.*?)"""', each, re.DOTALL)[1] for each in MODELFILES), strict=True)
)
GO = """
package main
import ("encoding/json"; "os"; "text/template")
type Message struct { Role, Content string }
type Case struct { System string; Messages []*Message }
func main() {
    var cases []Case
    json.NewDecoder(os.Stdin).Decode(&cases)
    parsed := template.Must(template.New("").Option("missingkey=zero").Parse(os.Args[1]))
    for _, each := range cases {
        err := parsed.Execute(os.Stdout, map[string]any{"System": each.System, "Messages": each.Messages})
        if err != nil { panic(err) }
        os.Stdout.WriteString("\\x00")
    }
}
"""


def pieces(template: str) -> list[str]:
    """Texts and actions in turn, texts trimmed where an action beside them asks for it."""
    parts = re.split(r"({{.*?}})", template)
    for index in range(1, len(parts), 2):
        if parts[index].startswith("{{- "):
            parts[index - 1] = parts[index - 1].rstrip()
        if parts[index].endswith(" -}}"):
            parts[index + 1] = parts[index + 1].lstrip()
    return [part if number % 2 == 0 else part.strip("{}-").strip() for number, part in enumerate(parts)]


FUNCTIONS = {
    "eq": lambda one, other: one == other,
    "le": lambda one, other: one <= other,
    "len": len,
    "slice": lambda items, start: items[start:],
    "and": lambda one, other: one and other,
}


def value(words: list[str], scope: dict):
    """The value of an expression such as `eq (len $.Messages) 1`; its words are taken off the list."""
    found = []
    while words and words[0] != ")":
        word = words.pop(0)
        if word == "(":
            found.append(value(words, scope))
            words.pop(0)
        elif word[0] in "$.":
            name, *fields = ("$" + word if word[0] == "." else word).split(".")
            item = scope[name]
            for each in fields:
                item = item[each]
            found.append(item)
        else:
            found.append(FUNCTIONS[word] if word in FUNCTIONS else json.loads(word))
    return found[0](*found[1:]) if callable(found[0]) else found[0]


def evaluate(expression: str, scope: dict):
    return value(re.findall(r'"[^"]*"|[()]|[^\s()]+', expression), scope)


def block(parts: list[str], scope: dict, shown: bool) -> tuple[str, str]:
    """(text, the action that ended it) of all up to an `end` or `else` of the same depth; the parts are taken off."""
    text = ""
    while parts:
        text += parts.pop(0) if shown else parts.pop(0) and ""
        action = parts.pop(0) if parts else "end"
        if action == "end" or action.startswith("else"):
            return text, action
        if action.startswith("range "):
            index, item, over = re.fullmatch(r"range (\$\w+), (\$\w+) := (.+)", action).groups()
            before = list(parts)
            for number, each in enumerate(evaluate(over, scope)):
                parts[:] = before
                text += block(parts, scope | {index: number, item: each}, shown)[0]
        elif action.startswith("if "):
            done = not shown
            condition = action.removeprefix("if ")
            while condition:
                taken = not done and bool(evaluate(condition, scope))
                inner, ended = block(parts, scope, taken)
                text, done = text + inner, done or taken
                condition = ended.removeprefix("else if ") if ended.startswith("else if ") else ""
        else:
            text += evaluate(action, scope) if shown else ""
    return text, "end"


def case_of(messages: list[dict]) -> dict:
    """What Ollama gives to a template: the system prompt by itself, and all messages with it."""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    named = [{"Role": message["role"], "Content": message["content"]} for message in messages]
    return {"System": system, "Messages": named}


def rendered(template: str, messages: list[dict]) -> str:
    return block(pieces(template), {"$": case_of(messages)}, shown=True)[0]


@cache
def compiled(version: str) -> Template:
    return ImmutableSandboxedEnvironment().from_string(CHAT_TEMPLATES[version])


def by_jinja(version: str, messages: list[dict]) -> str:
    return compiled(version).render(messages=messages, bos_token="<s>", eos_token="</s>")


def prompts() -> list[list[dict]]:
    """Conversations up to a user's turn, without blanks at the end of an answer."""
    return [
        [
            message | {"content": message["content"].rstrip(" ")} if message["role"] == "assistant" else message
            for message in messages[:-1]
        ]
        for messages in PLAIN[:100]
    ]


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_ollamas_template_renders_what_the_chat_template_does(version):
    template = TEMPLATES["v1" if version == "v1" else "v3"]
    cases = prompts()
    kinds = {(len(each) > 3, each[0]["role"] == "system") for each in cases}
    assert len(kinds) == 4  # of one turn and of several, with and without a system prompt
    for messages in cases:
        assert "<s>" + rendered(template, messages) == by_jinja(version, messages)


def test_the_two_versions_are_not_taken_for_each_other():
    messages = next(each for each in prompts() if len(each) > 3 and each[0]["role"] == "system")
    assert "<s>" + rendered(TEMPLATES["v1"], messages) != by_jinja("v3", messages)
    assert "<s>" + rendered(TEMPLATES["v3"], messages) != by_jinja("v1", messages)


def test_blanks_after_an_answer_stay_in_ollama_as_the_page_says():
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello  "},
        {"role": "user", "content": "?"},
    ]
    assert "<s>" + rendered(TEMPLATES["v3"], messages) == by_jinja("v3", messages).replace("Hello", "Hello  ")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("go"), reason="Go is not installed")
@pytest.mark.parametrize("version", ["v1", "v3"])
def test_go_renders_the_same(version, tmp_path):
    (tmp_path / "main.go").write_text(GO)
    cases = json.dumps([case_of(messages) for messages in prompts()])
    command = ["go", "run", str(tmp_path / "main.go"), TEMPLATES[version]]
    done = subprocess.run(command, input=cases.encode(), capture_output=True, timeout=600, check=True)
    expected = "".join(rendered(TEMPLATES[version], messages) + "\0" for messages in prompts())
    assert done.stdout.decode() == expected
