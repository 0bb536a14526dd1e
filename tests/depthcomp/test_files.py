"""Files are whole or absent, whatever happens while they are written."""

import subprocess
import sys
import textwrap

import pytest

from depthcomp import files
from depthcomp.errors import ArtifactError


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=r"cannot create the folder .*below"):
        files.require_writable(tmp_path / "file" / "below")


def test_an_unwritable_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ArtifactError, match="cannot be written to; choose another"):
        files.require_writable(tmp_path)


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = files.write_atomically(tmp_path / "file", b"old")

    def no_room(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_room)
    with pytest.raises(ArtifactError, match=r"cannot write .*file: No space left.*has room"):
        files.write_atomically(target, b"new and longer")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_process_killed_while_writing_leaves_no_partial_file(tmp_path):
    script = f"""
        import os, signal
        from depthcomp.files import write_atomically
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        write_atomically({str(tmp_path / "file")!r}, b"x" * 1000)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False)
    assert done.returncode < 0
    assert not (tmp_path / "file").exists()


def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    assert files.write_atomically(tmp_path / "link", b"new") == tmp_path / "link"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"
