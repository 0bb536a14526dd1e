"""Ways to call `compress_depth` wrongly, drawn with a seed: data, examples, options, files and models that fail."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from depthcomp import FinetuneConfig

__all__ = ["MISUSES", "Call", "misused"]

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A call that works, to be spoilt.

    Attributes:
        model: the network.
        images: a few of its inputs, (n, ...).
        folder: an empty folder.
        rng: draws what is left open.
    """

    model: nn.Module
    images: Tensor
    folder: Path
    rng: np.random.Generator

    def one_of(self, *values: Any) -> Any:
        """Return one of some values."""
        return values[int(self.rng.integers(len(values)))]

    def file(self, name: str, content: bytes) -> str:
        """Return the path of a new file."""
        (self.folder / name).write_bytes(content)
        return str(self.folder / name)


def misused(name: str, call: Call) -> Arguments:
    """Return the changed arguments of a call under one of the misuses, by its name."""
    changed: Arguments = MISUSES[name](call)
    return changed


def _budget(call: Call) -> Arguments:
    wrong = ("0%", "100%", "-3ms", "nan%", "1.4X", "0.9x", "abc", "", 0.8, None, 3, ("80%",), b"80%", "80 %%", "infms")
    return {"budget": call.one_of(*wrong)}


def _option(call: Call) -> Arguments:
    wrong: dict[str, tuple[Any, ...]] = {
        "method": ("best", "", None, 3, ["depth"]),
        "kinds": (["prune"], [], "drop", [3], 3, [None]),
        "importance": ("exact", 3, None, "missing/importance.json", ["curvature"]),
        "outputs": ("boxes", 3, ["scores"]),
        "loss": ("mse", 3, nn.MSELoss),
        "seed": (-1, 1.5, "a", None, 2**64),
        "backend": ("tflite", 3, None, "tensorrt", object()),
        "precision": ("fp16", 16, None),
        "module": ("nowhere", "", 3, "*", ["a", "b"], "a..b"),
        "exclude": (("nowhere",), 3, [3], ("[",)),
        "finetune": ({"epochs": 1}, 3, "yes"),
        "inputs": (("nowhere",), 3, (), ("x", "x")),
        "progress": (3, "rich"),
    }
    name = call.one_of(*wrong)
    return {name: call.one_of(*wrong[name])}


def _loss_that_fails(call: Call) -> Arguments:
    def failing(original: Any, outputs: Any, batch: Any) -> Any:
        raise ValueError("not today")

    losses: tuple[Callable[..., Any], ...] = (
        failing, lambda original, outputs, batch: "0.3", lambda original, outputs, batch: torch.zeros(2),
        lambda original, outputs: 0.0, lambda original, outputs, batch: None,
        lambda original, outputs, batch: float("nan"),
    )  # fmt: skip
    return {"loss": call.one_of(*losses)}


def _shape(call: Call) -> Arguments:
    images = call.images
    wrong = (
        images[0, 0], images[:, :0], images[:0], images.unsqueeze(1), images.repeat(1, 2, *[1] * (images.ndim - 2)),
        images[..., :1], images[..., :3], torch.zeros(()), torch.zeros(4), images.flatten(1), images[:, :, None, None],
    )  # fmt: skip
    return {call.one_of("data", "val_data", "example_inputs"): call.one_of(*wrong)}


def _values(call: Call) -> Arguments:
    broken = call.images.clone()
    broken.view(-1)[int(call.rng.integers(broken.numel()))] = call.one_of(float("nan"), float("inf"))
    wrong = (
        broken, call.images.double(), call.images.half(), call.images.long(), call.images > 0.5,
        call.images.to(torch.complex64), call.images.to("meta"), call.images.to_sparse(),
    )  # fmt: skip
    return {call.one_of("data", "val_data", "example_inputs"): call.one_of(*wrong)}


def _container(call: Call) -> Arguments:
    image = call.images[0]
    wrong = (
        [], (), {}, [None], [3], ["nothing"], [{}], [[]], [()], 3, object(), lambda: None, [image, image[..., :-1]],
        {"a": 1}, [{"image": "cat"}], [(image, "cat")], [("cat", image)], np.array([object()], dtype=object), iter([]),
        [image.numpy().astype(object)], (image for _ in ()), np.zeros((2, 2, 2, 2, 2, 2)), b"image", [image, None],
    )  # fmt: skip
    return {call.one_of("data", "data", "val_data", "example_inputs"): call.one_of(*wrong)}


def _labels(call: Call) -> Arguments:
    count = len(call.images)
    wrong = (
        torch.full((count,), -5), torch.full((count,), 10**6), torch.zeros(count + 1, dtype=torch.long), "labels",
        torch.zeros(count, 3, 3, 3), torch.full((count,), float("nan")), [None] * count, np.zeros(count, dtype=object),
        torch.zeros(0, dtype=torch.long), torch.zeros(count, dtype=torch.complex64), {"y": 3}, None,
    )  # fmt: skip
    return {"data": [(call.images, call.one_of(*wrong))]}


def _data_that_fail(call: Call) -> Arguments:
    error = call.one_of(ValueError, KeyError, OSError, RuntimeError, IndexError, TypeError, ZeroDivisionError)

    def failing() -> Iterator[Tensor]:
        yield call.images[:2]
        raise error("the disk is gone")

    return {call.one_of("data", "val_data"): failing()}


def _path(call: Call) -> Arguments:
    wrong = (
        "missing/photos", call.file("a.txt", b"no image"), call.file("a.npy", b"\x93NUMPY\x01\x00"), str(call.folder),
        call.file("a.pt", b"PK\x03\x04"), call.file("a.png", b"\x89PNG\r\n\x1a\n"), call.file("a.npz", b"PK"), "",
    )  # fmt: skip
    return {call.one_of("data", "val_data"): call.one_of(*wrong)}


def _table(call: Call) -> Arguments:
    table = call.file("table.json", call.one_of(b"", b"{", b"{}", b"[]", b'{"version": 99}', b"\xff\xfe"))
    return {"table": call.one_of(table, str(call.folder / "no" / "table.json"), str(call.folder), 3)}


def _folder(call: Call) -> Arguments:
    file = call.file("taken", b"")
    return {"output_dir": call.one_of(file, f"{file}/below", "/proc/nowhere", "\0", 3)}


def _model(call: Call) -> Arguments:
    return {"model": call.one_of(*_MODELS)(copy.deepcopy(call.model), call)}


def _with_nan(model: nn.Module, call: Call) -> nn.Module:
    parameters = list(model.parameters())
    with torch.no_grad():
        parameters[int(call.rng.integers(len(parameters)))].view(-1)[0] = float("nan")
    return model


def _failing(model: nn.Module, call: Call) -> nn.Module:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Any:
            if float(x.sum()) > 0:
                return self.inner(x)
            return self.inner(x) + 1

    return Failing()


_MODELS: tuple[Callable[[nn.Module, Call], Any], ...] = (
    _with_nan, _failing,
    lambda model, call: model.double(),
    lambda model, call: model.half(),
    lambda model, call: model.to("meta"),
    lambda model, call: model.state_dict(),
    lambda model, call: type(model),
    lambda model, call: None,
    lambda model, call: call.file("model.onnx", b"no model"),
    lambda model, call: "missing.onnx",
    lambda model, call: nn.Sequential(),
    lambda model, call: nn.Linear(3, 3),
    lambda model, call: torch.jit.trace(model, call.images[:1], check_trace=False, strict=False),
    lambda model, call: nn.Sequential(nn.Flatten(), model),
    lambda model, call: nn.Sequential(model, nn.Conv2d(1, 1, 1)),
)  # fmt: skip


def _tuning(call: Call) -> Arguments:
    settings = FinetuneConfig(epochs=1, batch_size=call.one_of(1, 2, 10**6))
    return {
        "finetune": settings,
        **call.one_of(_labels, _container, _shape, _values, lambda call: {"data": None})(call),
    }


MISUSES: dict[str, Callable[[Call], Arguments]] = {
    "budget": _budget, "option": _option, "failing loss": _loss_that_fails, "shape": _shape, "values": _values,
    "container": _container, "labels": _labels, "failing data": _data_that_fail, "path": _path, "table": _table,
    "folder": _folder, "model": _model, "tuning": _tuning,
}  # fmt: skip
