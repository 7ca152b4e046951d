"""One name has one meaning in stages/: no two modules define a function or class of the same name."""

import ast

from tests.support.project import ROOT


def defined_names(path):
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)} - {"main"}


def test_no_name_is_defined_in_two_modules():
    modules = {}
    for path in sorted((ROOT / "stages").rglob("*.py")):
        for name in defined_names(path):
            modules.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert len(modules) > 400
    assert {name: paths for name, paths in modules.items() if len(paths) > 1} == {}
