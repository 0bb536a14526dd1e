"""One process at a time changes a file."""

import errno
import os
import threading
from pathlib import Path

import pytest

from depthcomp_errors import ArtifactError, DataError
from depthcomp_files import locked


def test_links_to_a_file_share_its_lock(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    order = []

    def second() -> None:
        with locked(tmp_path / "link", "notes"):
            order.append("second")

    with locked(tmp_path / "file", "notes"):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(timeout=0.2)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "file.lock", "link"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    sentence = r"cannot write the notes .*absent/notes: its folder does not exist; create it first"
    with pytest.raises(ArtifactError, match=sentence), locked(tmp_path / "absent" / "notes", "notes"):
        pass


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
            "cannot write the notes .*: Permission denied; choose",
        ),
        (
            NotImplementedError("no flock"),
            "cannot lock the notes .*: its file system has no locks; choose a folder on",
        ),
    ],
)
def test_a_lock_that_cannot_be_taken_is_the_error_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, sentence: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(DataError, match=sentence), locked(tmp_path / "notes", "notes", error=DataError):
        pass
