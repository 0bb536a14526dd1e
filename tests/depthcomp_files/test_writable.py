"""A path that cannot be written to is refused before the work that it is for."""

from pathlib import Path

import pytest

from depthcomp_errors import ArtifactError, DataError
from depthcomp_files import require_writable_file, require_writable_folder


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    assert require_writable_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert require_writable_folder(str(tmp_path / "a" / "b")).is_dir()


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=r"cannot create the folder .*below: Not a directory; choose a path"):
        require_writable_folder(tmp_path / "file" / "below")


def test_an_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ArtifactError, match="cannot be written to; choose another"):
        require_writable_folder(tmp_path)
    with pytest.raises(DataError, match="cannot be written to; choose another"):
        require_writable_folder(tmp_path, error=DataError)
    with pytest.raises(ArtifactError, match="its folder cannot be written to; take another disk"):
        require_writable_file(tmp_path / "notes", "notes", "take another disk")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("", "it is a folder; add a file name to it"), ("absent/notes", "its folder does not exist; create that first")],
)
def test_a_file_that_cannot_be_there_is_refused(tmp_path: Path, path: str, sentence: str) -> None:
    with pytest.raises(DataError, match=f"cannot write the notes .*: {sentence}"):
        require_writable_file(tmp_path / path, "notes", "choose another", error=DataError)
    require_writable_file(tmp_path / "notes", "notes", "choose another")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("folder", "reason"), [("a\0b", "embedded null byte"), (3, "expected str, bytes")])
def test_what_is_no_path_is_refused(folder: object, reason: str) -> None:
    with pytest.raises(ArtifactError, match=f"cannot create the folder .*: {reason}.*; choose a path"):
        require_writable_folder(folder)  # type: ignore[arg-type]
