"""Registries find what the modules of a folder register, in one order."""

import importlib
import sys

import pytest

from depthcomp.errors import DepthCompError
from depthcomp.registry import Registry

MODULE = """
from {package}.found import FOUND

FOUND.register("{name}", {value})
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The name of a package whose two modules register a number each."""
    package = tmp_path / "registered_things"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "found.py").write_text(
        "from depthcomp.registry import Registry\n\nFOUND = Registry('registered_things')\n"
    )
    for module, name, value in (("a_file", "second", 2), ("b_file", "first", 1)):
        (package / f"{module}.py").write_text(MODULE.format(package=package.name, name=name, value=value))
    monkeypatch.syspath_prepend(tmp_path)
    yield package.name
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        del sys.modules[name]


@pytest.mark.parametrize("early", [None, "b_file"])
def test_every_module_is_found_whichever_was_imported_first(folder, early):
    if early:
        __import__(f"{folder}.{early}")
    found = __import__(f"{folder}.found", fromlist=["FOUND"]).FOUND
    assert dict(found) == {"first": 1, "second": 2}
    assert list(found) == ["first", "second"]
    assert len(found) == 2
    assert "third" not in found


def test_a_name_is_given_once():
    found = Registry("depthcomp.export")
    found.register("one", 1)
    with pytest.raises(DepthCompError, match=r"'one' is registered in depthcomp.export already; choose another name"):
        found.register("one", 2)


def test_a_failed_import_is_tried_again_and_hides_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "shelf"
    folder.mkdir()
    bodies = {"__init__": "", "a": "R.register('a', 1)", "b": "raise OSError('boom')", "c": "R.register('c', 3)"}
    for name, body in bodies.items():
        (folder / f"{name}.py").write_text(f"from shelf_registry import R\n{body}" if body else "")
    (tmp_path / "shelf_registry.py").write_text("from depthcomp.registry import Registry\nR = Registry('shelf')")
    monkeypatch.syspath_prepend(tmp_path)
    registry = importlib.import_module("shelf_registry").R
    for _ in range(2):
        with pytest.raises(OSError, match="boom"):
            list(registry)
    (folder / "b.py").write_text("")
    importlib.invalidate_caches()
    assert list(registry) == ["a", "c"]
