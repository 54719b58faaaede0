"""Segmentation models as teachers: one shape of answer from three kinds of network.

A teacher reads RGB in 0..255 and answers with class probabilities. It may be a model folder of this package,
a folder of transformers, or any function of the user's. Big images are covered by overlapping windows whose
probabilities are averaged. What this is not: training; and no weights are unpickled or downloaded unasked.

B batch (1 here), K classes of the teacher, G groups of them, Q queries, H W pixels, h w at the network's
stride.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.decibels import db_statistics
from crossearth_sar.errors import InputError
from crossearth_sar.model import CONFIG_FILE, WEIGHTS_FILE, CrossEarthSAR, load_model
from crossearth_sar.spacing import sliding_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WindowNetwork = Callable[[Tensor], Tensor]
"""(1, 3, H, W) window -> (1, K, H, W) probabilities."""

MASK_MODELS = ("mask2former", "maskformer")
"""Kinds of transformers' universal segmentation that need no more than an image."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_LOAD_ERRORS = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, SafetensorError)
"""What transformers, safetensors and the hub raise on files that are damaged or do not belong together."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A network that names the classes of optical images.

    for_image: (1, 3, H, W) float32 RGB in 0..255, the whole image -> the network for its windows, so that
        statistics of the image are taken once. Windows are multiples of `multiple` on both axes.
    origin: where it came from; sha256: of its files, by name.
    """

    kind: str
    origin: str
    classes: tuple[str, ...]
    for_image: Callable[[Tensor], WindowNetwork]
    sha256: dict[str, str]
    crop: int = 512
    stride: int = 341
    multiple: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.crop:
            raise InputError(
                "crop and stride do not fit",
                got=f"crop {self.crop}, stride {self.stride}",
                expected="0 < stride <= crop",
            )

    def to_mapping(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "origin": self.origin,
            "sha256": self.sha256,
            "crop": self.crop,
            "stride": self.stride,
        }

    @torch.no_grad()
    def probabilities(self, image_CHW: Tensor, grouped: Callable[[Tensor], Tensor]) -> Tensor:
        """(3, H, W) RGB in 0..255 -> (G, H, W), windows averaged.

        Args:
            grouped: (1, K, H, W) -> (1, G, H, W), applied per window: a teacher of 150 classes on a scene
                of 20 megapixels would else need 12 GB.

        Raises:
            InputError: the network gives another shape, or no finite numbers.
        """
        image = image_CHW[None].to(self.device)
        height, width = image_CHW.shape[1:]
        network, total = self.for_image(image), None
        hits = torch.zeros(height, width, device=self.device)
        for rows, columns in sliding_windows(height, width, self.crop, self.stride):
            window = image[..., rows, columns]
            size = (window.shape[-2], window.shape[-1])
            down, right = (-side % self.multiple for side in size)
            found = network(F.pad(window, (0, right, 0, down), mode="replicate"))[..., : size[0], : size[1]]
            self._require_probabilities(found, size)
            part = grouped(found)[0]
            if total is None:
                total = part.new_zeros(len(part), height, width)
            total[:, rows, columns] += part
            hits[rows, columns] += 1
        assert total is not None
        return total / hits

    def _require_probabilities(self, found: Tensor, size: tuple[int, int]) -> None:
        expected = (1, len(self.classes), *size)
        if tuple(found.shape) != expected:
            raise InputError(
                f"the teacher {self.origin} gives no scores of its classes",
                got=f"shape {tuple(found.shape)}",
                expected=f"{expected}",
                fix="correct teacher_classes in the class map, or the adapter",
            )
        if not bool(torch.isfinite(found).all()):
            raise InputError(
                f"the teacher {self.origin} gives values that are not finite",
                expected="finite scores; its input is RGB in 0..255",
            )


def open_teacher(
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    device: str = "cpu",
    crop: int | None = None,
    stride: int | None = None,
    download: bool = False,
) -> Teacher:
    """The model in a folder: this package's, or transformers' semantic or mask segmentation.

    Args:
        classes: names of its classes; None: the folder's own, or the seven if it knows none and has seven.
        crop, stride: of the windows; None: the model's own, or 512 and 341.
        download: lets `path` be a name on the Hugging Face hub.

    Raises:
        InputError: there is no such folder, a file is missing or damaged, weights are not complete, or the
            names are not as many as the classes.
    """
    folder = Path(path).expanduser()
    if not (folder / CONFIG_FILE).is_file():
        if download and not folder.exists():
            return _transformers_teacher(str(path), None, classes, device, crop, stride)
        raise InputError(
            f"no teacher in {folder}",
            got=f"{CONFIG_FILE} is missing" if folder.is_dir() else "no such folder",
            expected=f"{CONFIG_FILE} and weights as safetensors",
            fix="give a model folder, or module:function; --allow-download takes a name on the hub",
        )
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / CONFIG_FILE} cannot be read", got=str(error)) from error
    if isinstance(config, dict) and "model_type" in config:
        return _transformers_teacher(str(folder), folder, classes, device, crop, stride)
    return _own_teacher(folder, classes, device, crop, stride)


def adapter_teacher(
    factory: Callable[..., Callable[[Tensor], Tensor]],
    origin: str,
    *,
    classes: Sequence[str],
    device: str = "cpu",
    crop: int | None = None,
    stride: int | None = None,
) -> Teacher:
    """A teacher of `factory(num_classes=, device=)`, which gives a callable from (1, 3, H, W) RGB in 0..255
    to logits (1, K, h, w) at any stride. Only its source file has a checksum: its weights are its own."""
    network = factory(num_classes=len(classes), device=device)
    source = inspect.getsourcefile(inspect.unwrap(factory))
    return Teacher(
        kind="adapter",
        origin=origin,
        classes=tuple(classes),
        for_image=lambda image: lambda window: _softmax(network(window), window),
        sha256={} if source is None else {Path(source).name: _sha256(Path(source))},
        crop=crop or 512,
        stride=stride or min(crop or 512, 341),
        device=device,
    )


def _own_teacher(
    folder: Path, classes: Sequence[str] | None, device: str, crop: int | None, stride: int | None
) -> Teacher:
    model: CrossEarthSAR = load_model(folder, device=device)
    decoder = model.require_decoder()

    def for_image(image: Tensor) -> WindowNetwork:
        statistics = db_statistics(image)

        def network(window: Tensor) -> Tensor:
            output = model(window, *statistics)
            size = (window.shape[-2], window.shape[-1])
            return _shares(decoder.semantic_scores(output.decoder, size))

        return network

    own = SEVEN_CLASSES.names if model.config.num_classes == len(SEVEN_CLASSES) else None
    crop = crop or model.config.window
    return Teacher(
        kind="crossearth_sar",
        origin=str(folder),
        classes=_names(classes, own, model.config.num_classes, str(folder)),
        for_image=for_image,
        sha256={name: _sha256(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)},
        crop=crop,
        stride=stride or min(crop, model.config.crop_stride),
        multiple=model.config.backbone.size_multiple,
        device=device,
    )


def _transformers_teacher(
    name: str,
    folder: Path | None,
    classes: Sequence[str] | None,
    device: str,
    crop: int | None,
    stride: int | None,
) -> Teacher:
    model = _load_transformers(name, local=folder is not None).to(device)
    labels = model.config.id2label
    own = tuple(str(labels[i]) for i in range(len(labels)))
    mean, std, scale = _preprocessing(folder, device)

    def network(window: Tensor) -> Tensor:
        try:
            output = model(pixel_values=(window * scale - mean) / std)
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"the teacher {name} cannot read a window",
                got=f"{window.shape[-2]} x {window.shape[-1]} pixels: {error}",
                fix="give --crop, the size that it was trained with",
            ) from error
        if "logits" in output:
            return _softmax(output.logits, window)
        return _mask_scores(output.class_queries_logits, output.masks_queries_logits, window)

    files = sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")) if folder else []
    commit = getattr(model.config, "_commit_hash", None)
    return Teacher(
        kind=f"transformers {type(model).__name__}",
        origin=name if commit is None else f"{name}@{commit}",
        classes=_names(classes, own, len(own), name),
        for_image=lambda image: network,
        sha256={path.name: _sha256(path) for path in files},
        crop=crop or 512,
        stride=stride or min(crop or 512, 341),
        multiple=32,
        device=device,
    )


def _load_transformers(name: str, *, local: bool) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local)
        if config.model_type in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES:
            auto = AutoModelForSemanticSegmentation
        elif config.model_type in MASK_MODELS:
            auto = AutoModelForUniversalSegmentation
        else:
            raise InputError(
                f"{name} is no semantic segmentation model that can be a teacher",
                got=f"model_type {config.model_type!r}",
                expected=", ".join((*MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, *MASK_MODELS)),
                fix="for another network, write an adapter: module:function",
            )
        model, loading = auto.from_pretrained(
            name, config=config, local_files_only=local, use_safetensors=True, output_loading_info=True
        )
    except InputError:
        raise
    except _LOAD_ERRORS as error:
        raise InputError(
            f"transformers cannot load {name}",
            got=f"{type(error).__name__}: {str(error)[:600]}",
            expected="config.json and *.safetensors of one model",
        ) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise InputError(
            f"the weights of {name} are not complete",
            got=f"{len(missing)} missing: {', '.join(missing[:4])}",
            expected="every weight, the segmentation head included",
            fix="give a model that was fine-tuned for segmentation, not its backbone alone",
        )
    if loading["unexpected_keys"]:
        _log.warning("%s: %d weights are not used", name, len(loading["unexpected_keys"]))
    return model.eval()


def _preprocessing(folder: Path | None, device: str) -> tuple[Tensor, Tensor, float]:
    """Mean and deviation, (1, 3, 1, 1), and the factor before them, by preprocessor_config.json."""
    path = None if folder is None else folder / "preprocessor_config.json"
    content: dict[str, Any] = {}
    if path is not None and path.is_file():
        try:
            content = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} cannot be read", got=str(error)) from error
    else:
        _log.warning("no preprocessor_config.json: ImageNet's mean and deviation are taken")
    plain = not content.get("do_normalize", True)
    mean = (0.0,) * 3 if plain else content.get("image_mean") or IMAGENET_MEAN
    std = (1.0,) * 3 if plain else content.get("image_std") or IMAGENET_STD
    scale = float(content.get("rescale_factor", 1 / 255)) if content.get("do_rescale", True) else 1.0
    if len(mean) != 3 or len(std) != 3:
        raise InputError(f"{path} is not for RGB images", got=f"mean {mean}, std {std}")
    as_tensor = [torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std)]
    return as_tensor[0], as_tensor[1], scale


def _softmax(logits: Tensor, window: Tensor) -> Tensor:
    if logits.ndim != 4:
        return logits  # refused by its shape
    size = tuple(window.shape[-2:])
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False).softmax(1)


def _mask_scores(class_logits_BQK: Tensor, mask_logits_BQhw: Tensor, window: Tensor) -> Tensor:
    """Sum over queries of class probability ("no object" left out) times mask, as shares of 1."""
    class_probability = class_logits_BQK.float().softmax(-1)[..., :-1]
    scores = torch.einsum("bqk,bqhw->bkhw", class_probability, mask_logits_BQhw.float().sigmoid())
    size = tuple(window.shape[-2:])
    return _shares(F.interpolate(scores, size=size, mode="bilinear", align_corners=False))


def _shares(scores_BKHW: Tensor) -> Tensor:
    """Scores >= 0 that need not add up to 1 (masks overlap) divided by their sum."""
    scores_BKHW = scores_BKHW.float()
    return scores_BKHW / scores_BKHW.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def _names(
    given: Sequence[str] | None, own: tuple[str, ...] | None, count: int, origin: str
) -> tuple[str, ...]:
    names = tuple(given) if given is not None else own
    if names is None or len(names) != count:
        raise InputError(
            f"the class names of the teacher {origin} "
            + ("are not known" if names is None else "do not fit it"),
            got=None if names is None else f"{len(names)} names",
            expected=f"{count} names in the order of its classes",
            fix="list them in the class map: teacher_classes: [water, …]",
        )
    return names


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
