"""A question put in the plain way that a base model knows from pre-training: as the beginning of a text.

Beside the answers in the chat format, which no base was trained on, they tell what a tuned model learned of the task
from what it learned of the format. A function is asked for by its signature and docstring, as HumanEval does (Chen et
al. 2021), and ends with the first line that is not indented; other code by a docstring of the file; a text by itself.
"""

import ast
import re
from dataclasses import dataclass

from stages.core.python_syntax import parse, python_in

SIGNATURE = re.compile(r"^(?:async )?def (\w+)\(.*\).*:$", re.MULTILINE)
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # with its end, as ast counts them
INDENT = " " * 4
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class CompletionPrompt:
    """prompt: what the model goes on from. given: the beginning of the answer in the data that this already says; rest:
    the remainder. head: what the model's answer begins with, None where it need not be a function."""

    prompt: str
    given: str
    rest: str
    head: str | None


def is_function(node: ast.AST) -> bool:
    return isinstance(node, Function)


def stub_function(question: str) -> tuple[str, str, str] | None:
    """(name, prompt, head) of a function that the question gives as code, with nothing in it but its docstring."""
    block = python_in(question)[-1].strip("\n")
    tree = parse(block)
    last = tree.body[-1] if tree and tree.body else None
    if is_function(last) and len(last.body) == 1 and ast.get_docstring(last) is not None:
        return last.name, block + "\n", block + "\n"
    return None


def described_function(question: str) -> tuple[str, str, str] | None:
    """The same of one whose signature stands on a line of its own, with what it is to do behind."""
    match = SIGNATURE.search(question)
    documentation = question[match.end() :].strip().replace('"""', "'''") if match else ""
    if not documentation or parse(f"{match[0]} pass") is None:
        return None
    text = "\n".join(f"{INDENT}{line}".rstrip() for line in documentation.split("\n")).strip()
    return match[1], f'{match[0]}\n{INDENT}"""{text}\n{INDENT}"""\n', f"{match[0]}\n"


def split_at_body(answer: str, name: str) -> tuple[str, str] | None:
    """The answer up to the body of the function `name`, docstring included, and from there on."""
    tree = parse(answer)
    functions = filter(is_function, tree.body) if tree else ()
    node = next((function for function in functions if function.name == name), None)
    if node is None:
        return None
    statements = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not statements:
        return None
    decorators = getattr(statements[0], "decorator_list", [])
    first = min([statements[0].lineno, *(decorator.lineno for decorator in decorators)])
    lines = LINE.findall(answer)
    while first > 1 and (not lines[first - 2].strip() or lines[first - 2].lstrip().startswith("#")):
        first -= 1
    return ("".join(lines[: first - 1]), "".join(lines[first - 1 :])) if first - 1 >= node.lineno else None


def completion_prompt(question: str, answer: str) -> CompletionPrompt:
    """answer: the one in the data, of which no more than the kind shapes the prompt."""
    answer = answer.rstrip(" ")  # as the templates v2 and v3 do
    if asked := stub_function(question) or described_function(question):
        name, prompt, head = asked
        if parts := split_at_body(answer, name):
            return CompletionPrompt(prompt, *parts, head)
    if parse(answer) is not None:
        text = question.strip().replace('"""', "'''")
        return CompletionPrompt(f'"""{text}\n"""\n\n', "", answer, None)
    return CompletionPrompt(f"{question.strip()}\n\n", "", answer, None)


def complete_answer(form: CompletionPrompt, text: str) -> tuple[str, bool]:
    """The answer that a continuation makes, and whether a function in it has come to its end."""
    if form.head is None:
        return text, False
    lines = LINE.findall(text)
    outside = next((place for place, line in enumerate(lines) if line.strip() and not line[0].isspace()), None)
    return form.head + "".join(lines[:outside]).rstrip(), outside is not None
