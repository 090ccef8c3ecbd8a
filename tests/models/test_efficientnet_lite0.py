"""EfficientNet-Lite0 takes the published state dict, and pads as TensorFlow does."""

from __future__ import annotations

import hashlib

import pytest
import torch

from hypimg.models.backbones.efficientnet_lite0 import EfficientNetLite0, _StridedConvolution

# SHA-256 over the sorted lines "name shape" of efficientnet-lite0-57934424.pth, 296 tensors.
PUBLISHED = "d7f6403136a9eb8668cc14621d4cd20b5b1e93b3b80c8f792caef702f2ca8001"


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    torch.manual_seed(0)
    return EfficientNetLite0().eval()


def test_its_names_and_shapes_are_those_of_the_published_weights(network):
    state = network.state_dict()
    lines = "\n".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(state.items()))
    assert len(state) == 296
    assert hashlib.sha256(lines.encode()).hexdigest() == PUBLISHED
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008


def test_it_halves_an_image_five_times(network):
    sizes = []
    hooks = [
        block.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[2:]))
        for block in network._blocks
    ]
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
        assert network(torch.zeros(2, 3, 97, 65)).shape == (2, 1000)  # other sizes work, too
    for hook in hooks:
        hook.remove()
    assert [size[0] for size in sizes[:16]] == [112, *[56] * 2, *[28] * 2, *[14] * 6, *[7] * 5]
    assert sizes[-1] == (4, 3)


@pytest.mark.parametrize(
    ("kernel", "size", "sides"),
    [(3, 8, (0, 1, 0, 1)), (5, 8, (1, 2, 1, 2)), (3, 7, (1, 1, 1, 1)), (5, 7, (2, 2, 2, 2))],
)
def test_a_strided_convolution_pads_the_odd_zero_to_the_right_and_below(kernel, size, sides):
    convolution = _StridedConvolution(2, 4, kernel, 2, bias=False)
    images = torch.randn(3, 2, size, size)
    padded = torch.nn.functional.pad(images, sides)
    expected = torch.nn.functional.conv2d(padded, convolution.weight, stride=2)
    assert expected.shape[2:] == (-(-size // 2), -(-size // 2))
    torch.testing.assert_close(convolution(images), expected)


def test_batch_normalisation_has_tensorflows_epsilon(network):
    assert {module.eps for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {1e-3}
