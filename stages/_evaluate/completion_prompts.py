"""Turns a question into a completion prompt: the beginning of a text, as a base model knows it from pre-training.

No base was trained on the chat format. Compared with the chat answers, the completions show how much of the tuned
model's gain is the task and how much is the format. Three kinds of prompt exist:

- A function: its signature and docstring, as HumanEval asks (Chen et al. 2021). It ends before the first line without
  indentation.
- Other code: a docstring of the file.
- A text: the question itself.
"""

import ast
import re
from dataclasses import dataclass

from stages.core.python_syntax import parse, python_in

SIGNATURE = re.compile(r"^(?:async )?def (\w+)\(.*\).*:$", re.MULTILINE)
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # a line with its end, as ast counts lines
INDENT = " " * 4
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class CompletionPrompt:
    """A question as the beginning of a text.

    Args:
        prompt: What the model continues.
        given: The beginning of the answer in the data that the prompt already contains.
        rest: The remainder of that answer.
        head: The beginning of the model's answer; None where the answer need not be a function.
    """

    prompt: str
    given: str
    rest: str
    head: str | None


def is_function(node: ast.AST) -> bool:
    return isinstance(node, Function)


def stub_function(question: str) -> tuple[str, str, str] | None:
    """(name, prompt, head) of a function that the question gives as code, with only a docstring in it.

    None otherwise.
    """
    block = python_in(question)[-1].strip("\n")
    tree = parse(block)
    last = tree.body[-1] if tree and tree.body else None
    if is_function(last) and len(last.body) == 1 and ast.get_docstring(last) is not None:
        return last.name, block + "\n", block + "\n"
    return None


def described_function(question: str) -> tuple[str, str, str] | None:
    """(name, prompt, head) of a function whose signature is a line of the question, followed by a description.

    None otherwise.
    """
    match = SIGNATURE.search(question)
    documentation = question[match.end() :].strip().replace('"""', "'''") if match else ""
    if not documentation or parse(f"{match[0]} pass") is None:
        return None
    text = "\n".join(f"{INDENT}{line}".rstrip() for line in documentation.split("\n")).strip()
    return match[1], f'{match[0]}\n{INDENT}"""{text}\n{INDENT}"""\n', f"{match[0]}\n"


def split_at_body(answer: str, name: str) -> tuple[str, str] | None:
    """Splits the answer where the body of the function `name` begins, after its docstring.

    None without such a function.
    """
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
    """The completion prompt of a question. The answer in the data decides only which kind of prompt it is."""
    answer = answer.rstrip(" ")  # the templates v2 and v3 strip it too
    if asked := stub_function(question) or described_function(question):
        name, prompt, head = asked
        if parts := split_at_body(answer, name):
            return CompletionPrompt(prompt, *parts, head)
    if parse(answer) is not None:
        text = question.strip().replace('"""', "'''")
        return CompletionPrompt(f'"""{text}\n"""\n\n', "", answer, None)
    return CompletionPrompt(f"{question.strip()}\n\n", "", answer, None)


def complete_answer(form: CompletionPrompt, text: str) -> tuple[str, bool]:
    """(the answer that a continuation makes, whether a function in it came to its end)."""
    if form.head is None:
        return text, False
    lines = LINE.findall(text)
    outside = next((place for place, line in enumerate(lines) if line.strip() and not line[0].isspace()), None)
    return form.head + "".join(lines[:outside]).rstrip(), outside is not None
