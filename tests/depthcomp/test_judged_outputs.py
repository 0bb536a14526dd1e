"""What a network returns decides how its compressed form is judged, and the result says so."""

import pytest
import torch
from tiny_network import images, short_chain
from torch import nn

from depthcomp import FinetuneConfig, compress_depth
from depthcomp.errors import DataError, DepthCompError
from depthcomp.results.loading import load_result

pytestmark = [pytest.mark.whole, pytest.mark.filterwarnings("ignore:.*scenes")]


class Returns(nn.Module):
    """The short chain, and what a function makes of its features and scores."""

    def __init__(self, outputs):
        super().__init__()
        self.chain, self.outputs = short_chain(), outputs

    def forward(self, x):
        features = self.chain[:-3](x)
        return self.outputs(features, self.chain[-3:](features))


@pytest.fixture
def compressed(arithmetic_backend):
    def run(forward, **options):
        options = {"data": images(), **options}
        return compress_depth(Returns(forward).eval(), "75%", backend=arithmetic_backend(), **options)

    return run


def test_classes_alone_are_judged_by_their_scores(compressed):
    def outputs(features, scores):
        return {"class": scores.argmax(1), "sure": scores.amax(1) > 0.1}

    with pytest.warns(UserWarning, match="the network returns no real values, so it is judged by those that"):
        result = compressed(outputs)
    assert result.loss > 1e-6
    assert result.judged_by == "squared errors of 2 tensors, relative to the variance of each channel"
    assert {name: tuple(found.shape) for name, found in result.model(images(2)).items()} == {
        "class": (2,),
        "sure": (2,),
    }


def test_labels_that_are_real_values_mean_a_regression(compressed, tmp_path):
    def scores_alone(features, scores):
        return scores

    numbers = torch.randn(32, 5, generator=torch.Generator().manual_seed(2))
    result = compressed(scores_alone, data=[(images(), numbers)], output_dir=tmp_path)
    assert result.judged_by.startswith("squared errors")
    assert load_result(tmp_path).judged_by == result.judged_by
    assert "squared errors" in (tmp_path / "report.html").read_text()
    shares = compressed(scores_alone, data=[(images(), numbers.softmax(1))])
    assert shares.judged_by == "divergence of the scores of 5 classes, in nats"
    asked = compressed(scores_alone, outputs="values")
    assert asked.judged_by == result.judged_by
    assert asked.loss == pytest.approx(result.loss, rel=1e-6)


def test_a_function_of_the_user_judges_plans(compressed):
    seen = []

    def boxes_apart(original, found, batch):
        seen.append(len(batch))
        return 1e6 * float((original["boxes"] - found["boxes"]).abs().mean())

    result = compressed(lambda features, scores: {"boxes": scores, "features": features}, loss=boxes_apart)
    assert result.judged_by.endswith("boxes_apart")
    assert result.loss > 1
    assert seen


@pytest.mark.filterwarnings("ignore:the network returns no real values")
def test_a_function_of_the_user_sees_what_the_network_returns(compressed):
    def disagreement(original, found, batch):
        return float((original != found).float().mean())

    result = compressed(lambda features, scores: scores.argmax(1), loss=disagreement)
    assert 0 <= result.loss <= 1
    with pytest.raises(DepthCompError, match="this importance trains networks by their outputs, and the network ret"):
        compressed(lambda features, scores: scores.argmax(1), importance="kim23")


@pytest.mark.filterwarnings("ignore:the network returns no real values")
def test_the_teacher_returns_what_the_network_returns(compressed):
    kinds = set()

    def loss(student, teacher, batch):
        kinds.update(type(network(batch)) for network in (student, teacher))
        return sum(parameter.square().sum() for parameter in student.parameters())

    config = FinetuneConfig(epochs=1, batch_size=16, loss=loss)
    compressed(lambda features, scores: scores.argmax(1), data=list(images().split(8)), finetune=config)
    assert kinds == {torch.Tensor}


def test_scores_of_another_shape_are_refused(compressed):
    with pytest.raises(
        DataError, match=r"outputs \(='scores'\) needs .* but it returns \(\d+, 8, 32, 32\), \(\d+, 5\)"
    ):
        compressed(lambda features, scores: (features, scores), outputs="scores")
