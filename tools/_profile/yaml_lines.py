"""Changes values and comments of a YAML file in its text, so that the rest of the text stays as it is."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from stages.core.yaml_files import safe_yaml
from stages.runtime.errors import UserError

COLUMN = 30  # of the comments, in a file that has none


@dataclass(frozen=True)
class Entry:
    """A key's place in the text. `colon` is the index after the colon, `end` the index after the value."""

    line: int
    colon: int
    start: int
    end: int

    @property
    def is_alias(self) -> bool:
        """Tells whether the value is an alias (*name): its node is at the place that it repeats."""
        return self.start < self.colon


def value_end(node: Node) -> int:
    """Returns the index after a node. The end mark of a block is too late: blank lines and comments precede it."""
    if isinstance(node, ScalarNode) or node.flow_style or not node.value:
        return node.end_mark.index
    children = [child for item in node.value for child in (item if isinstance(item, tuple) else (item,))]
    return max(value_end(child) for child in children)


def entries(text: str) -> dict[str, Entry]:
    """Returns {dotted key: its place}, parents before their keys."""

    def walk(node: Node, prefix: str) -> Iterator[tuple[str, Entry]]:
        for key, value in node.value:
            colon = text.index(":", key.end_mark.index) + 1
            line = text.rfind("\n", 0, key.start_mark.index) + 1
            end = max(colon, value_end(value))
            end = len(text[:end].rstrip())  # a block of text ends after its line break
            if isinstance(value, ScalarNode) and not value.value and value.style is None:
                end = colon  # the end mark of no value is after the comment
            yield f"{prefix}{key.value}", Entry(line, colon, value.start_mark.index, end)
            if isinstance(value, MappingNode) and value.start_mark.index >= colon:
                yield from walk(value, f"{prefix}{key.value}.")

    root = safe_yaml().compose(text)
    return dict(walk(root, "")) if isinstance(root, MappingNode) else {}


def source_text(text: str, key: str) -> str:
    """Returns a value as the file spells it, such as 2e-4."""
    place = entries(text)[key]
    return text[place.colon : place.end].strip()


def comment_at(text: str, index: int) -> re.Match | None:
    """Matches the rest of a line after `index` if it is blank or a comment, which is the group 1."""
    return re.compile(r"[ \t]*(#[^\r\n]*)?(?=\r?\n|\Z)").match(text, index)


def comment_column(text: str) -> int:
    """Returns the column in which most comments after values begin."""
    columns = Counter()
    for place in entries(text).values():
        match = comment_at(text, place.end)
        if match and match[1]:
            columns[match.start(1) - text.rfind("\n", 0, match.start(1)) - 1] += 1
    return columns.most_common(1)[0][0] if columns else COLUMN


def with_comment(before: str, comment: str, column: int) -> str:
    return f"{before}{' ' * max(2, column - len(before))}{comment}" if comment else before


def set_values(text: str, values: dict[str, str]) -> str:
    """Replaces the values of keys by YAML text, and keeps their comments. A missing key goes to its section's end.

    Raises:
        UserError: the value is an alias, or the section of a missing key is missing too.
    """
    column = comment_column(text)
    for key, value in values.items():
        places = entries(text)
        text = set_value(text, key, value, places[key], column) if key in places else add_key(text, key, value)
    return text


def set_value(text: str, key: str, value: str, place: Entry, column: int) -> str:
    if place.is_alias:
        raise UserError(f"{key} repeats another value (*name). Write its own value there")
    if "\n" in text[place.colon : place.end]:  # the comment of a block is on the key's line
        comment, end = comment_at(text, place.colon), place.end
    else:
        comment = comment_at(text, place.end)
        end = comment.end() if comment else place.end
    line = with_comment(f"{text[place.line : place.colon]} {value}", (comment and comment[1]) or "", column)
    return text[: place.line] + line + text[end:]


def add_key(text: str, key: str, value: str) -> str:
    section, _, name = key.rpartition(".")
    places = entries(text)
    siblings = [place for other, place in places.items() if other.rpartition(".")[0] == section]
    if not siblings:
        raise UserError(f"{key} is missing, and so is its section")
    last = siblings[-1]
    indent = re.compile(r"[ \t]*").match(text, last.line)[0]
    end = re.compile(r"[^\n]*").match(text, last.end).end()
    return f"{text[:end]}\n{indent}{name}: {value}{text[end:]}"


def set_comments(text: str, comments: dict[str, str]) -> str:
    """Writes the comments of these keys after their values, or after the key where the value begins a line below."""
    places = entries(text)
    for key, place in reversed(places.items()):  # from the end, so that the places before stay right
        if key not in comments or place.is_alias:
            continue
        value = text[place.colon : place.end]
        match = comment_at(text, place.colon if "\n" in value else place.end)
        if match:  # not in the middle of a line such as {user: question, assistant: answer}
            line = with_comment(text[place.line : match.start()], f"# {comments[key]}", COLUMN)
            text = text[: place.line] + line + text[match.end() :]
    return text
