"""A JSON document is read behind its schema, and written only over its own kind."""

import json
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict

from depthcomp_errors import DataError
from depthcomp_files import JsonFormat


class Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["recipe"]
    recipe_version: Literal[2]
    grams: float


FORMAT = JsonFormat("recipe", Recipe, "recipe_version", 2, "cook anew", DataError)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.json"
    FORMAT.write(path, {"grams": 1.5})
    return path


def test_equal_documents_become_equal_bytes(path: Path) -> None:
    before = path.read_bytes()
    assert FORMAT.read(path).grams == 1.5
    FORMAT.write(path, {"grams": 1.5})
    assert path.read_bytes() == before
    assert list(json.loads(before)) == ["grams", "kind", "recipe_version"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", r"is truncated or not JSON \(.*\); restore it or cook anew\."),
        ('{"kind": "recipe", "recipe_version": 2, "grams": NaN}', "NaN is not a JSON number"),
        ('{"kind": "recipe", "recipe_version": 1}', "has recipe version 1, but this depthcomp reads version 2; cook"),
        ('{"kind": "recipe", "recipe_version": 2}', r"is no recipe: grams: Field required; check the path, or cook"),
        ('{"kind": "menu"}', "holds a menu, and a recipe is needed; check the path, or cook anew"),
        ('{"schema_version": 2, "entries": {}}', "holds a latency table, and a recipe is needed"),
        ("[]", "has recipe version None"),
    ],
)
def test_what_is_no_such_document_is_refused(path: Path, text: str, sentence: str) -> None:
    path.write_text(text)
    with pytest.raises(DataError, match=sentence):
        FORMAT.read(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the recipe .*absent.json: No such file or directory; check"):
        FORMAT.read(tmp_path / "absent.json")


@pytest.mark.parametrize("text", ['{"kind": "menu"}', "{}", "# notes"])
def test_a_file_of_another_kind_is_not_overwritten(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(DataError, match=r"check the path|restore it"):
        FORMAT.write(path, {"grams": 2.0})
    assert path.read_text() == text


def test_an_older_version_of_its_own_kind_is_overwritten(path: Path) -> None:
    path.write_text('{"kind": "recipe", "recipe_version": 1}')
    FORMAT.write(path, {"grams": 2.0})
    assert FORMAT.read(path).grams == 2.0


def test_a_number_that_json_cannot_hold_leaves_the_old_file(path: Path) -> None:
    with pytest.raises(DataError, match=r"the recipe holds a number that is not finite .*; cook anew"):
        FORMAT.write(path, {"grams": float("inf")})
    assert FORMAT.read(path).grams == 1.5


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot write the recipe .*: No such file or directory; choose a folder"):
        FORMAT.write(tmp_path / "absent" / "recipe.json", {"grams": 1.0})
