"""Task of a compression: the model, its images, the method and the importance."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from depthcomp.data.batches import Data
from depthcomp.data.example import ExampleInputs
from depthcomp.data.input_names import InputNames
from depthcomp.data.output_loss import DEFAULT_LOSS, OutputKind, OutputLoss, OwnLoss
from depthcomp.data.pictures import readable
from depthcomp.errors import DepthCompError
from depthcomp.importance.context import ScoringContext
from depthcomp.importance.protocol import Importance
from depthcomp.importance.scoring import ImportanceLike, parse_importance, scoring_context
from depthcomp.importance.unscored import Unscored
from depthcomp.methods.candidates import PricedCandidates, choices_on_frontier
from depthcomp.methods.method import Method
from depthcomp.methods.registry import find_method
from depthcomp.preparation import Prepared, measurable, prepare
from depthcomp.progress import Progress
from depthcomp.sources.module_names import Modules
from fx_passes.preconditions import require_capturable

__all__ = ["CompressionTask"]


@dataclass(frozen=True, slots=True)
class CompressionTask:
    """The arguments that `compress_depth` and the shards of its scores share, and their preparation.

    Attributes:
        model: a trained CNN; it is not changed.
        method: the method that chooses the plan.
        importance: the importance that finds the losses of choices.
        example_inputs: a batch of images, or of several inputs; None to take one from the data or guess.
        data: calibration images; None for synthetic ones.
        val_data: images to judge on; None to let parts of the calibration images judge in turn.
        seed: seed of everything random.
        loss: what the user says about the loss of outputs.
        inputs: the names of the forward's arguments that example and data give; None to tell them by its signature.
        assumed: sentences on how pictures in the data were read.
        exclude: names or patterns of modules that stay as they are.
        part: path of the one module to compress; empty for the whole model.
    """

    model: nn.Module
    method: Method
    importance: Importance
    example_inputs: ExampleInputs | None
    data: Data | None
    val_data: Data | None
    seed: int
    loss: OutputLoss = DEFAULT_LOSS
    inputs: Sequence[str] | None = None
    assumed: tuple[str, ...] = ()
    exclude: Modules = ()
    part: str = ""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        method: str,
        importance: ImportanceLike,
        *,
        example_inputs: ExampleInputs | None = None,
        data: Data | None = None,
        val_data: Data | None = None,
        seed: int = 0,
        kinds: Sequence[str] | None = None,
        outputs: OutputKind | None = None,
        loss: OwnLoss | None = None,
        inputs: Sequence[str] | None = None,
        exclude: Modules = (),
    ) -> CompressionTask:
        """Return the task for a user's arguments.

        Raises:
            DepthCompError: the method, a kind, the importance or the kind of outputs is unknown, the loss is no
                function, or the seed is out of range.
            TableError: the file of an importance cannot be read.
        """
        chosen = find_method(method, kinds)
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise DepthCompError(f"seed (={seed!r}) must be a whole number from 0 to 2**63 - 1")
        known = parse_importance(importance)
        asked = OutputLoss.asked(outputs, loss)
        scorer = known if chosen.scored else Unscored()
        return cls(model, chosen, scorer, example_inputs, data, val_data, seed, asked, inputs, exclude=exclude)

    @property
    def refit_kept(self) -> bool:
        """Whether kept layers behind a change are refitted, too; never on synthetic images."""
        return self.data is not None and self.method.fits

    def with_readable_data(self) -> CompressionTask:
        """Return the task with tensors in place of pictures in its data; several inputs are tensors already.

        Raises:
            CaptureError: the model is unusable.
            DataError: the data are pictures that cannot be read for the model.
        """
        require_capturable(self.model)  # before its data are read
        if InputNames.of(self.model, self.example_inputs, self.inputs).several:
            return self
        data, said = readable(self.data, self.model, self.example_inputs, "data")
        val_data, also_said = readable(self.val_data, self.model, self.example_inputs, "val_data")
        assumed = tuple(dict.fromkeys(filter(None, (said, also_said))))
        return replace(self, data=data, val_data=val_data, assumed=assumed)

    def prepared(self, failures: Mapping[str, str]) -> Prepared:
        """Return the captured model, its images, and the rewrites that the method may take.

        Args:
            failures: reasons why operators could not be measured, by key; rewrites to these operators are refused.

        Raises:
            CaptureError, DataError: as `compress_depth`.
            TableError: the network itself has an operator that could not be measured.
        """
        found = prepare(
            self.model, self.example_inputs, self.data, self.val_data, self.seed,
            most=self.importance.most_images, limits=self.method.limits, loss=self.loss, inputs=self.inputs,
            exclude=self.exclude, part=self.part,
        )  # fmt: skip
        found = measurable(found, failures)
        candidates = self.method.candidates(found.network, found.candidates)
        return replace(found, candidates=candidates, notes=(*self.assumed, *found.notes))

    def scoring(
        self, prepared: Prepared, priced: PricedCandidates, *, folder: Path | None, progress: Progress
    ) -> ScoringContext:
        """Return the context that the importance scores in, with the choices that save time by a table."""
        on_frontier = functools.partial(choices_on_frontier, prepared, priced) if self.method.draw is None else None
        return scoring_context(
            prepared, priced.candidates, priced.savings_ms, self.importance,
            refit_kept=self.refit_kept, on_frontier=on_frontier, folder=folder, seed=self.seed, progress=progress,
            orders=self.method.orders,
        )  # fmt: skip
