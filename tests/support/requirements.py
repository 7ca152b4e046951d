"""What the requirements files pin, and what code imports."""

import ast
import importlib.metadata
import re
import sys

from tests.support.project import ROOT


def pins(name):
    """{distribution: version} of the lines `name==version`."""
    lines = (ROOT / name).read_text().splitlines()
    found = [
        re.match(r"([\w.-]+)(?:\[\w+\])?==(\S+)", line) for line in lines if line and not line.startswith(("#", "-"))
    ]
    assert all(found), f"{name} has a line without a pin"
    return {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in found}


def third_party(files):
    """Distributions that files import, ours and Python's own left out."""
    modules = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module.partition(".")[0])
    owners = importlib.metadata.packages_distributions()
    others = modules - sys.stdlib_module_names - {"stages", "tools"}
    return {re.sub(r"[-_.]+", "-", owner).lower() for module in others for owner in owners[module]}
