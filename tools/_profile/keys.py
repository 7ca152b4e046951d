"""Every key of params.yaml with its legal values and its meaning, as the schema has them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from stages._clean.empty_splits import EXPLAINED
from stages.core.params import Params

LOWEST = {"minimum": "from", "ge": "from", "exclusiveMinimum": "above", "gt": "above"}
WORDS = ("text", "number", "mapping")  # for values; the others are as params.yaml spells them
HIGHEST = {"exclusiveMaximum": "below", "lt": "below"}
PAGE = """\
# Every key of params.yaml

`python -m tools.profile --docs` writes this page from the schema in
[stages/core/params.py](../stages/core/params.py). `python -m tools.profile --keys lora` prints a part of it.

Every key must be set. A wrong key, type or value stops the first stage with a message. If no stage has to run,
`dvc repro` does not check the file. `make run` and `python -m tools.plan` always do.

## Profiles
A profile in `profiles/` holds only the values that it needs to change. It is applied to params.yaml:

```bash
python -m tools.profile --list                 # the profiles
python -m tools.profile mistral-7b --dry-run   # what would change
python -m tools.profile mistral-7b             # changes params.yaml
python -m tools.profile tiny                   # changes it back
```

- A value that one of the profiles has for this key is replaced. Any other value is your own and stays.
- With a model of your own `model.source` stays. With data of your own `data.source`, `data.limit` and the
  fractions of the splits stay.
- Comments, order and layout stay. The command prints what it changed and what it kept.
- It writes nothing if the profile's values and your own do not go together.
- To add a profile, put its values into `profiles/NAME.yaml`. If a key is new in `profiles/`, also put its usual value
  into `profiles/tiny.yaml`.
"""


@dataclass(frozen=True)
class Key:
    """A key or section of params.yaml, by its dotted name. `values` says what is legal."""

    name: str
    values: list[str]
    description: str
    is_section: bool

    @property
    def section(self) -> str:
        return self.name.partition(".")[0]


def numbers(kind: str, schema: dict) -> str:
    lowest = next((f"{word} {schema[key]}" for key, word in reversed(LOWEST.items()) if key in schema), "")
    highest = next((f"{word} {schema[key]}" for key, word in HIGHEST.items() if key in schema), "")
    return f"{kind} {', '.join(filter(None, (lowest, highest)))}".strip()


def legal_values(schema: dict) -> list[str]:
    """Returns the alternatives of a JSON schema in words."""
    options = schema.get("anyOf", [])
    if {"number", "integer"} <= {option.get("type") for option in options}:
        rest = [option for option in options if option.get("type") not in ("number", "integer")]
        return [numbers("number", schema), *legal_values({"anyOf": rest})]
    if "anyOf" in schema:
        return [value for option in options for value in legal_values(option)]
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return [json.dumps(value) if isinstance(value, bool) else str(value) for value in values]
    if "$ref" in schema:
        return ["mapping"]
    kind = schema["type"]
    if kind == "array":
        return [f"list of {' / '.join(legal_values(schema['items']))}".replace("mapping", "mappings")]
    words = {"boolean": ["true", "false"], "null": ["null"], "string": ["text"]}
    return words.get(kind) or [numbers("whole number", schema)]


def references(schema: dict) -> Iterator[tuple[str, str]]:
    """Yields (suffix of the key, name of the section) for each section inside a value."""
    if "$ref" in schema:
        yield "", schema["$ref"].rpartition("/")[2]
    for option in schema.get("anyOf", []):
        yield from references(option)
    if "items" in schema:
        yield from (("[]", name) for _, name in references(schema["items"]))


def params_keys() -> list[Key]:
    """Returns all keys and sections in the order of the schema, each section before its keys."""
    root = Params.model_json_schema()

    def walk(section: dict, prefix: str) -> Iterator[Key]:
        for name, schema in section["properties"].items():
            is_section = "$ref" in schema
            yield Key(f"{prefix}{name}", legal_values(schema), schema["description"], is_section)
            for suffix, inner in references(schema):
                yield from walk(root["$defs"][inner], f"{prefix}{name}{suffix}.")

    return list(walk(root, ""))


def as_text(section: str | None) -> str:
    """Returns the keys of a section, or of all of them, for a terminal."""
    lines = []
    for key in params_keys():
        if section in (None, key.section):
            title = key.name if key.is_section else f"{key.name}: {' | '.join(key.values)}"
            lines += [*([""] if key.is_section and lines else []), title, f"    {key.description}"]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Returns text that Markdown shows as it is in a cell of a table."""
    return re.sub(r"([\\*_\[\]|<>`])", r"\\\1", text)


def as_page() -> str:
    """Returns docs/params.md."""
    head = ["", "| key | values | meaning |", "|---|---|---|"]
    lines = [PAGE, "## Keys outside sections", *head[1:]]
    for key in params_keys():
        if key.is_section:
            lines += ["", f"## {key.name}", f"{escaped(key.description).capitalize()}.", *head]
        else:
            values = ", ".join(value if " " in value or value in WORDS else f"`{value}`" for value in key.values)
            lines.append(f"| `{key.name}` | {values} | {escaped(key.description)} |")
    lines += ["", "## Why `clean` rejects a row", "", "| reason | what is the matter | what to do |", "|---|---|---|"]
    lines += [f"| `{reason}` | {escaped(why)} | {escaped(advice)} |" for reason, (why, advice) in EXPLAINED.items()]
    return "\n".join(lines) + "\n"
