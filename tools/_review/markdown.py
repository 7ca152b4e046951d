"""Pieces of a comment on GitHub in which text from a pull request stays text.

GitHub looks for @names, #numbers and addresses after it has rendered Markdown, so a backslash does not protect from
this. Inside code it does not look. So everything that comes from a file is shown as code.
"""

import html
import re

from stages.comparison.visible_text import visible
from stages.runtime.counts import plural

MOST_CHARACTERS = 60_000  # GitHub refuses a comment of more than 65,536
BARS = "▁▂▃▄▅▆▇█"


def entities(text: str) -> str:
    """The text with entities for all characters except letters, digits and blanks.

    Markdown and HTML leave entities alone.
    """
    return re.sub(r"[^A-Za-z0-9 ]", lambda match: f"&#{ord(match[0])};", text)


def code(text: object, most: int = 200) -> str:
    """One line of code, which also works in a table's cell."""
    line = " ".join(visible(str(text)).split()) or " "
    line = line if len(line) <= most else line[: most - 1] + "…"
    # In a code span only backticks have a meaning, and pipes if it is in a table.
    return f"<code>{entities(line)}</code>" if re.search(r"[`|\\]", line) else f"`{line}`"


def block(text: str, most: int, keep_end: bool = False) -> str:
    """Several lines of code as one line of HTML. An empty line would end a table of HTML.

    Args:
        most: Characters that are shown.
        keep_end: Whether a longer text loses its beginning, not its end.
    """
    text = visible(text)
    if len(text) > most:
        text = f"…{text[1 - most :]}" if keep_end else f"{text[: most - 1]}…"
    return f"<pre>{html.escape(text).replace('@', '&#64;')}</pre>".replace("\n", "&#10;")


def markdown_table(header: list[str], rows: list[list[str]], numbers_from: int = 1) -> str:
    """A table. Columns from `numbers_from` on are flush right. The cells are Markdown already."""
    rule = ["---" if place < numbers_from else "---:" for place in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)) + "\n"


def foldable(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body}\n</details>\n"


def list_names(names: list[str], most: int = 6) -> str:
    listed = ", ".join(code(name, 80) for name in names[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed


def sparkline(values: list[float], low: float, high: float, width: int = 32) -> str:
    """A curve as one line of blocks. Each block is the mean of its part, and `low` and `high` are the bounds."""
    width = min(width, len(values))
    parts = [values[place * len(values) // width : (place + 1) * len(values) // width] for place in range(width)]
    means = [sum(part) / len(part) for part in parts]
    scale = (high - low) or 1.0
    return "".join(BARS[min(len(BARS) - 1, max(0, int((mean - low) / scale * len(BARS))))] for mean in means)


def bounded(sections: list[str], most: int = MOST_CHARACTERS) -> str:
    """The sections as one text. A section that does not fit is left out, but a later, shorter one may still fit."""
    kept: list[str] = []
    for section in sections:
        if sum(map(len, kept)) + len(section) <= most:
            kept.append(section)
    if left := len(sections) - len(kept):
        kept.append(f"{plural(left, 'section')} left out: a comment has no room for more.\n")
    return "\n".join(kept)
