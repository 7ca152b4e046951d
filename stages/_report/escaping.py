"""Makes untrusted text (data, model output, file names) safe and legible in HTML and in Markdown."""

import re

from jinja2 import pass_eval_context
from jinja2.nodes import EvalContext
from markupsafe import Markup

from stages.comparison.visible_text import visible

MARKDOWN = re.compile(r"([\\`*_\[\]<>|&~#$@!])")


def inline(text: str) -> str:
    """One line of Markdown that shows the text as it is, in a table cell too."""
    return MARKDOWN.sub(r"\\\1", " ".join(visible(text).split()))


def fenced(text: str) -> Markup:
    """A Markdown code block. Its fence is longer than any in the text, so the text cannot end it."""
    text = visible(text)
    ticks = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return Markup(f"{ticks}text\n{text}\n{ticks}")  # noqa: S704  (Markdown: nothing parses it as HTML)


def as_is(text: str) -> Markup:
    """Marks text that must not be escaped again: a library wrote it for its place."""
    return Markup(text)  # noqa: S704  (Markdown, and YAML that a YAML writer quoted)


@pass_eval_context
def escape_expression(context: EvalContext, value: object) -> object:
    """Jinja calls this for each expression that it prints, so that no template can forget to escape."""
    if isinstance(value, Markup):
        return value
    return visible(str(value)) if context.autoescape else inline(str(value))
