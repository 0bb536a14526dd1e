"""Sensitivity of a network's loss to changes of its inner tensors, from a few backward passes.

To second order, the divergence of a changed network from the original is a quadratic form of the change d of a tensor
that all changed data passes through. Random probes of the output estimate it:

- class scores s: KL(p || q) is E <g, d>^2 / 2, where g is the gradient of <u, s> for a random u whose covariance is
  that of the Fisher information, diag(p) - p p^T (Amari, Natural gradient works efficiently in learning, Neural
  Computation 1998). Classes drawn from p have this covariance too, but a rare class then decides the estimate;
- other outputs: the squared error relative to a variance v is E <g, d>^2, where g is the gradient of <z, output> /
  sqrt(v).

z, and through it u, has independent random signs (Hutchinson, A stochastic estimator of the trace, 1990). With labels,
the gradient of the cross-entropy adds the first-order term of the task loss.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from depthcomp.data.inputs import Inputs
from depthcomp.data.output_loss import DEFAULT_LOSS, OutputLoss, require_finite
from depthcomp.fitting.execution import Tail, inputs_by_node, run_node

__all__ = ["Sensitivity"]

TURN = 1.0  # nats; the median ratio to true losses is then nearest to 1 on EfficientNet-Lite0


class Sensitivity:
    """Gradients of random probes of a network's output at chosen tensors, on one batch.

    The network must treat the images of a batch separately.

    Args:
        gm: the network, in evaluation mode; it is not changed.
        images: images (n, c, h, w), or several inputs.
        names: names of the nodes whose tensors get gradients.
        draws: number of probes.
        generator: draws the probes, on the CPU.
        labels: classes of the images (n,); None where there are none.
        judging: the loss of outputs.

    Attributes:
        tail: the recorded forward.

    Raises:
        DataError: the network's own output is not finite.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        images: Tensor | Inputs,
        names: Collection[str],
        *,
        draws: int,
        generator: torch.Generator,
        labels: Tensor | None = None,
        judging: OutputLoss = DEFAULT_LOSS,
    ) -> None:
        images = Inputs.of(images)
        forward = _Differentiable(gm, images.each(Tensor.detach), names)
        with torch.enable_grad():
            output = forward.run()
            require_finite(output)
            probes = list(judging.probes(output, len(images), draws, generator))
            if labels is not None:
                probes.append(F.cross_entropy(output, labels.to(output.device), reduction="sum"))
        self._images, self._draws, self._flattens = len(images), draws, judging.flattens(output)
        self._gradients = _pulled_back(probes, forward.wanted)
        self.tail = Tail(gm, images, recorded={node: _detached(value) for node, value in forward.env.items()})

    @torch.no_grad()
    def rise(self, name: str, changed: Tensor) -> float:
        """Return the estimated rise of the loss where the tensor at a node becomes `changed` (n, ...).

        It is NaN where a gradient is missing or not finite: no differentiable path leads from the tensor to the output.
        """
        if name not in self._gradients:
            return math.nan
        products = self._by_image(_products(self._gradients[name], changed - self.tail.value(name)))
        quadratic = products[: self._draws].square().mean(0)  # of each image
        slope = products[self._draws :].sum(0) / 2  # of the task loss; none without labels
        return float(((quadratic + slope) * (_flattening(quadratic) if self._flattens else 1.0)).mean())

    def _by_image(self, products: Tensor) -> Tensor:
        """Return products (probes, rows) summed over the rows of each image, one for each shared branch."""
        several = products.shape[1] > self._images and not products.shape[1] % self._images
        return torch.unflatten(products, 1, (-1, self._images)).sum(1) if several else products


class _Differentiable(fx.Interpreter):
    """A forward that keeps all tensors, and tracks gradients from the wanted ones on."""

    def __init__(self, gm: fx.GraphModule, images: Inputs, names: Collection[str]) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self._inputs, self._names = inputs_by_node(gm, images), frozenset(names)
        self.wanted: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node, and keep it where it is wanted."""
        value = run_node(self, n, self.env, self._inputs)
        if n.name in self._names and isinstance(value, Tensor) and value.is_floating_point():
            self.wanted[n.name] = value if value.requires_grad else value.requires_grad_()
        return value


def _pulled_back(probes: list[Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of probes (n, probes, ...) at each tensor that all reach with finite gradients."""
    found: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for probe in probes if wanted else ():
        if not probe.requires_grad:
            return {}
        gradients = torch.autograd.grad(probe, list(wanted.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(wanted, gradients, strict=True):
            if gradient is not None and bool(gradient.isfinite().all()):
                found[name].append(gradient)
    return {name: torch.stack(several, dim=1) for name, several in found.items() if len(several) == len(probes)}


def _flattening(divergence: Tensor) -> Tensor:
    """Return factors that flatten quadratic estimates of divergences of class scores to linear growth above TURN nats.

    The divergence of large changes of class scores grows like the change, no longer like its square.
    """
    return 2 / (1 + (1 + 2 * divergence / TURN).sqrt())


def _products(gradients: Tensor, change: Tensor) -> Tensor:
    """Return the inner products of a change (n, ...) with gradients (n, probes, ...), as (probes, n)."""
    return torch.bmm(gradients.flatten(2), change.flatten(1).to(gradients)[..., None])[..., 0].T.double()


def _detached(value: Any) -> Any:
    return fx.node.map_aggregate(value, lambda part: part.detach() if isinstance(part, Tensor) else part)
