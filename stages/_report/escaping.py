"""Makes untrusted text (data, model output, names from files) safe and legible in HTML and in Markdown."""

import re

from jinja2 import pass_eval_context
from jinja2.nodes import EvalContext
from markupsafe import Markup

from stages.comparison.visible_text import visible

MARKDOWN = re.compile(r"([\\`*_\[\]<>|&~#$@!])")


def inline(text: str) -> str:
    """One line of Markdown that reads as the text itself, in a table cell too."""
    return MARKDOWN.sub(r"\\\1", " ".join(visible(text).split()))


def fenced(text: str) -> Markup:
    """A Markdown code block whose fence is longer than any in the text, so that nothing gets out of it."""
    text = visible(text)
    ticks = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return Markup(f"{ticks}text\n{text}\n{ticks}")  # noqa: S704  (Markdown: nothing parses it as HTML)


def as_is(text: str) -> Markup:
    """What is written by a library for its place, and must not be escaped once more."""
    return Markup(text)  # noqa: S704  (Markdown, and YAML that a YAML writer quoted)


@pass_eval_context
def escape_expression(context: EvalContext, value: object) -> object:
    """What Jinja does to every expression before it prints it: escaping is the rule, not a filter to remember."""
    if isinstance(value, Markup):
        return value
    return visible(str(value)) if context.autoescape else inline(str(value))
