"""Files are whole or absent, whatever happens while they are written."""

import errno
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from depthcomp_errors import ArtifactError, DataError
from depthcomp_files import write_atomically, write_json

pytestmark = pytest.mark.whole


def full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ArtifactError, match=r"cannot write \S*file: No space left on device; choose .* has room\."):
        write_atomically(target, b"new and longer")
    with pytest.raises(DataError, match=r"cannot write the notes \S*file: No space left"):
        write_atomically(target, b"new and longer", what="notes", error=DataError)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_process_killed_while_writing_leaves_no_partial_file(tmp_path: Path) -> None:
    script = f"""
        import os, signal
        from depthcomp_files import write_atomically
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        write_atomically({str(tmp_path / "file")!r}, b"x" * 1000)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False)
    assert done.returncode < 0
    assert not (tmp_path / "file").exists()
    (draft,) = tmp_path.iterdir()
    os.utime(draft, (0, 0))
    write_atomically(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "what the killed process left goes with time"


def test_drafts_of_other_files_and_of_living_writers_stay(tmp_path: Path) -> None:
    young, other = tmp_path / ".f[1].json.8.9.tmp", tmp_path / ".f1.json.7.9.tmp"
    young.touch()
    other.touch()
    os.utime(other, (0, 0))
    write_atomically(tmp_path / "f[1].json", b"new")
    assert young.exists()
    assert other.exists()


def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    assert write_atomically(tmp_path / "link", b"new") == tmp_path / "link"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


def test_json_is_readable_and_strict(tmp_path: Path) -> None:
    path = write_json(tmp_path / "numbers.json", {"b": 1, "a": [2.5]})
    assert path.read_text().splitlines()[1] == ' "b": 1,'
    assert json.loads(path.read_text()) == {"b": 1, "a": [2.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"b": math.nan})
    assert json.loads(path.read_text())["b"] == 1
