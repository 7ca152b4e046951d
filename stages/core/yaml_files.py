"""Reads YAML files as DVC reads them: YAML 1.2, in which 2e-4 is a number."""

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import Node

from stages.runtime.errors import UserError

MAX_VALUES = 100_000  # in one file; dvc.lock has about 2,500


def count_values(node: Node, counts: dict[int, float]) -> float:
    """The number of values in a node, where an alias counts as everything that it repeats.

    Args:
        counts: results so far, by the id of the node. The function adds to it.
    """
    if id(node) not in counts:
        counts[id(node)] = float("inf")  # the answer for an alias inside its own node
        children = node.value if isinstance(node.value, list) else []
        inner = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        counts[id(node)] = 1 + sum(count_values(part, counts) for part in inner)
    return counts[id(node)]


class BoundedComposer(Composer):
    """Refuses a small file whose aliases repeat each other millions of times. Strangers may write such files."""

    def get_single_node(self) -> Node | None:
        node = super().get_single_node()
        if node is not None and count_values(node, {}) > MAX_VALUES:
            raise YAMLError(f"its aliases (*name) repeat more than {MAX_VALUES:,} values")
        return node


def safe_yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = BoundedComposer
    return yaml


def read_yaml_text(text: str) -> dict:
    """Reads YAML 1.2, so that 2e-4 is a number."""
    return safe_yaml().load(text)


def read_yaml(path: Path) -> dict:
    """Reads a file as DVC reads it.

    Raises:
        UserError: the file is missing or is not valid YAML.
    """
    try:
        return read_yaml_text(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing. Restore it from Git: git checkout -- {path}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
