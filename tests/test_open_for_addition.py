"""The product is open for addition: no file but its own asks which kind of choice, slot or importance a thing is."""

import ast
import re
from pathlib import Path

import pytest

from depthcomp.importance.registry import PRESETS

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[1]
PACKAGES = ("depthcomp", "depthcomp_errors", "depthcomp_files", "dp_solver", "fx_passes", "latency_tables")
KINDS = ROOT / "fx_passes" / "kinds"
ASKS_KIND = re.compile(r"\bkind (==|!=|in) |\.kind (==|!=|in) ")
SLOTS = {"Slot"}
IMPORTANCES = {"CalibratedImportance", "FinetunedImportance", "StoredImportance", "Unscored"}


def product_files(*more):
    return sorted(path for folder in (*PACKAGES, *more) for path in (ROOT / folder).rglob("*.py"))


def named(node):
    """Return the last parts of the names in an expression, those of `a.B | C` being B and C."""
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return names | {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}


def instance_checks(tree):
    """Yield (line, names of classes) of each `isinstance`, `issubclass` or class pattern."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and named(node.func) & {"isinstance", "issubclass"} and len(node.args) == 2:
            yield node.lineno, named(node.args[1])
        elif isinstance(node, ast.MatchClass):
            yield node.cls.lineno, named(node.cls)


def defined(tree):
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def faults(trees, closed):
    return [
        f"{path}:{line} asks for {', '.join(sorted(asked))}"
        for path, tree in trees.items()
        for line, classes in instance_checks(tree)
        if (asked := classes & closed - defined(tree))
    ]


@pytest.fixture(scope="module")
def trees():
    return {path.relative_to(ROOT): ast.parse(path.read_text()) for path in product_files()}


def test_no_file_asks_which_importance_a_thing_is(trees):
    registered = {type(importance).__name__ for importance in PRESETS.values()}
    assert faults(trees, IMPORTANCES | registered) == []


def test_no_file_asks_which_slot_a_thing_is(trees):
    assert faults(trees, SLOTS) == []


def test_the_check_sees_what_it_forbids():
    source = "isinstance(x, table.ImportanceTable | Other)\nmatch x:\n    case Slot():\n        pass\n"
    assert faults({"some.py": ast.parse(source)}, {"ImportanceTable", "Slot"}) == [
        "some.py:1 asks for ImportanceTable", "some.py:3 asks for Slot",
    ]  # fmt: skip
    assert faults({"own.py": ast.parse("class Slot: ...\nisinstance(x, Slot)")}, {"Slot"}) == []


def test_no_file_asks_what_kind_a_choice_is():
    hits = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in product_files("scripts")
        if KINDS not in path.parents
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if ASKS_KIND.search(line)
    ]
    assert hits == []
