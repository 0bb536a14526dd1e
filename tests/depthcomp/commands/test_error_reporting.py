"""What the command line says of errors."""

from pathlib import Path

import pytest
import typer

from depthcomp.commands.error_reporting import EXIT_MENDABLE, reported_errors
from depthcomp.errors import TrainingError


@pytest.mark.parametrize(
    ("result", "kept", "said"),
    [
        (None, Path("out"), "the loss is nan"),
        (
            "found",
            Path("out"),
            "the loss is nan; the compressed network is in out, and the same command resumes from there",
        ),
        ("found", None, "the loss is nan; the compressed network is lost; give --out to keep it"),
    ],
)
def test_where_a_compression_is_whose_tuning_failed(result, kept, said, capsys):
    with pytest.raises(typer.Exit) as caught, reported_errors(kept=kept):
        raise TrainingError("the loss is nan", result=result)
    assert caught.value.exit_code == EXIT_MENDABLE
    assert capsys.readouterr().err == f"error: {said}\n"
