"""CrossEarthSAR: image -> descriptors -> backbone with sparse FFNs -> Mask2Former -> classes per pixel.

B batch, C bands (K in class scores: classes), H W pixels, P descriptors, L layers, E experts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crossearth_sar.config import from_mapping, merge, to_mapping
from crossearth_sar.decoder import DecoderOutput, Mask2FormerDecoder
from crossearth_sar.descriptors import RunningStandardizer, sar_descriptors
from crossearth_sar.errors import InputError
from crossearth_sar.hub import HubFolder
from crossearth_sar.moe import PhysicsGuidedMoE, RoutingInfo
from crossearth_sar.peft import EarthAdapter
from crossearth_sar.presets import DESCRIPTOR_ORDER, ModelConfig, MoEConfig, model_preset
from crossearth_sar.pretrained import load_backbone
from crossearth_sar.vit import DenseFFN, VisionTransformer, ViTOutput

AMPLITUDE_FLOOR = 1e-10
"""-200 dB: where the logarithm of an amplitude of 0 is cut."""
INPUT_LIMIT = 5.0
"""Normalised input is cut to +- this many standard deviations."""

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"


@dataclass(frozen=True)
class ModelOutput:
    """decoder: class and mask logits; routing: one RoutingInfo per block, empty for a dense model."""

    decoder: DecoderOutput
    routing: tuple[RoutingInfo, ...]


@dataclass(frozen=True)
class LossTerms:
    """total = segmentation + balance; parts: the segmentation loss by kind (class, mask, dice)."""

    total: Tensor
    segmentation: Tensor
    balance: Tensor
    parts: Mapping[str, Tensor]


class CrossEarthSAR(nn.Module, HubFolder):
    """A SAR segmenter with physics-guided sparse experts.

    Images are linear amplitude, (B, C, H, W) with 1 to 3 bands. The descriptors are those of the first
    band, before normalisation; the backbone sees 20 log10 of the amplitude, standardised, its bands
    repeated cyclically to three channels.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        make_ffn = partial(_sparse_ffn, config.moe) if config.moe else DenseFFN
        self.backbone = VisionTransformer(config.vit, make_ffn)
        if config.adapter is not None:
            self.backbone.adapter = EarthAdapter(config.vit.dim, config.vit.depth, config.adapter)
        self.decoder = Mask2FormerDecoder(
            config.decoder,
            in_channels=config.vit.dim,
            num_classes=config.num_classes,
            patch_size=config.vit.patch_size,
        )
        names = config.moe.descriptors if config.moe else ()
        self.descriptor_columns = [DESCRIPTOR_ORDER.index(name) for name in names]
        standardize = config.moe is not None and config.moe.standardize and bool(names)
        self.standardizer = RunningStandardizer(len(names)) if standardize else nn.Identity()

    def forward(
        self, image_BCHW: Tensor, db_mean: Tensor | None = None, db_std: Tensor | None = None
    ) -> ModelOutput:
        """Linear amplitude in, logits and routing out.

        Args:
            image_BCHW: amplitude, H and W multiples of the patch size; non-negative and finite (datasets
                of this package promise it; `predict` checks).
            db_mean, db_std: (C,) or (B, C), statistics of 20 log10(amplitude) of the images' domain; not
                given, each image's own are taken.
        """
        features = self.features(image_BCHW, db_mean, db_std)
        routing = tuple(r for r in features.routing if r is not None)
        return ModelOutput(self.decoder(features.feature_maps), routing)

    def features(
        self, image_BCHW: Tensor, db_mean: Tensor | None = None, db_std: Tensor | None = None
    ) -> ViTOutput:
        """What the decoder is given; arguments as in `forward`."""
        routed = self._descriptors(image_BCHW)
        pixels = network_input(image_BCHW, db_mean, db_std).to(self.backbone.cls_token.dtype)
        return self.backbone(pixels, routed)

    def loss(self, output: ModelOutput, mask_BHW: Tensor) -> LossTerms:
        """L = L_seg + L_BC, the latter summed over layers (METHOD sec. 2); mask 0..K-1 or 255."""
        parts = self.decoder.loss(output.decoder, mask_BHW)
        segmentation = torch.stack(list(parts.values())).sum()
        balance = segmentation.new_zeros(())
        if self.config.moe:
            balance = torch.stack(
                [r.balance_loss(self.config.moe.balance_weight) for r in output.routing]
            ).sum()
        return LossTerms(segmentation + balance, segmentation, balance, parts)

    @torch.no_grad()
    def predict(
        self,
        image_BCHW: Tensor,
        db_mean: Tensor | None = None,
        db_std: Tensor | None = None,
        *,
        on_window: Callable[[ModelOutput], None] | None = None,
    ) -> Tensor:
        """Classes per pixel, (B, H, W) int64, for an amplitude image of any size.

        Images larger than the crop are covered by overlapping windows whose scores are averaged; each
        window is an image of its own to the descriptors, as in training. Runs in eval mode.

        Args:
            image_BCHW, db_mean, db_std: as in `forward`; statistics not given are those of the whole image.
            on_window: called with each window's output, to look at the routing.

        Raises:
            InputError: for another shape, a bad pixel, or statistics that do not fit the bands.
        """
        image_BCHW = _checked_amplitude(image_BCHW)
        db_mean, db_std = _statistics(image_BCHW, db_mean, db_std)
        was_training = self.training
        self.eval()
        try:
            return self._slide(image_BCHW, db_mean, db_std, on_window).argmax(1)
        finally:
            self.train(was_training)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self, save_directory)

    @classmethod
    def _from_folder(cls, folder: Path, device: str | torch.device) -> CrossEarthSAR:
        return load_model(folder, device=device)

    def _slide(
        self,
        image_BCHW: Tensor,
        db_mean: Tensor,
        db_std: Tensor,
        on_window: Callable[[ModelOutput], None] | None,
    ) -> Tensor:
        height, width = image_BCHW.shape[-2:]
        crop, patch = self.config.crop_size, self.config.vit.patch_size
        scores, hits = None, image_BCHW.new_zeros(height, width)
        for rows, columns in sliding_windows(height, width, crop, self.config.crop_stride):
            window = image_BCHW[..., rows, columns]
            size = (window.shape[-2], window.shape[-1])
            pad_down, pad_right = (-side % patch for side in size)
            window = F.pad(window, (0, pad_right, 0, pad_down), mode="replicate")
            output = self(window, db_mean, db_std)
            if on_window is not None:
                on_window(output)
            padded_size = (window.shape[-2], window.shape[-1])
            part = self.decoder.semantic_scores(output.decoder, padded_size)[..., : size[0], : size[1]]
            if scores is None:
                scores = part.new_zeros(*part.shape[:2], height, width)
            scores[..., rows, columns] += part
            hits[rows, columns] += 1
        assert scores is not None
        return scores / hits

    def _descriptors(self, image_BCHW: Tensor) -> Tensor | None:
        if not self.descriptor_columns:
            return None
        descriptors_BP = sar_descriptors(image_BCHW[:, :1], check_finite=False)
        return self.standardizer(descriptors_BP[:, self.descriptor_columns])


def network_input(image_BCHW: Tensor, db_mean: Tensor | None = None, db_std: Tensor | None = None) -> Tensor:
    """(B, C, H, W) linear amplitude -> (B, 3, H, W) standardised dB, cut to +- INPUT_LIMIT, bands cycled."""
    db_mean, db_std = _statistics(image_BCHW, db_mean, db_std)
    decibels = to_db(image_BCHW)
    mean, std = (s.to(decibels).reshape(-1, image_BCHW.shape[1], 1, 1) for s in (db_mean, db_std))
    standardised = ((decibels - mean) / std).clamp(-INPUT_LIMIT, INPUT_LIMIT)
    return standardised[:, [band % image_BCHW.shape[1] for band in range(3)]]


def to_db(amplitude: Tensor) -> Tensor:
    """20 log10(amplitude), an amplitude of 0 at -200 dB; float32 at least, for half has no such floor."""
    precision = torch.promote_types(amplitude.dtype, torch.float32)
    return 20 * torch.log10(amplitude.to(precision).clamp(min=AMPLITUDE_FLOOR))


def db_statistics(image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in dB, (B, C) each, over the pixels with an amplitude above 0."""
    decibels, lit = to_db(image_BCHW).flatten(2), (image_BCHW > 0).flatten(2)
    count = lit.sum(-1).clamp(min=1)
    mean = (decibels * lit).sum(-1) / count
    variance = ((decibels - mean[..., None]).square() * lit).sum(-1) / count
    return mean, variance.sqrt().clamp(min=1e-3)


def sliding_windows(height: int, width: int, crop: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Windows of at most `crop` pixels that cover the image; the last of a row is shifted inward."""
    for top in _starts(height, crop, stride):
        for left in _starts(width, crop, stride):
            yield slice(top, min(top + crop, height)), slice(left, min(left + crop, width))


def build_model(
    name: str,
    num_classes: int,
    *,
    changes: Mapping[str, Any] | None = None,
    sparse: bool = True,
    weights: str | Path | None = None,
    expert_noise: float = 0.0,
) -> CrossEarthSAR:
    """A fresh model: `build_model("crossearth_sar_s", 7, weights="dinov2_vits14_pretrain.pth")`.

    Args:
        name: crossearth_sar_tiny | _s | _b | _l.
        changes: nested keys of ModelConfig to set on top of the preset.
        sparse: False gives the dense DINOv2 baseline of the same shape.
        weights: of the backbone, see `pretrained.load_backbone`: DINOv2's official file, a folder of
            transformers, or a folder that save_model wrote. Nothing is downloaded.
        expert_noise: see `moe.upcycle_state_dict`; for dense weights in a sparse model.

    Raises:
        InputError: for an unknown name or key, a value out of range, or weights that do not fit.
    """
    config = merge(model_preset(name, num_classes), changes or {})
    model = CrossEarthSAR(config if sparse else merge(config, {"moe": None}))
    if weights is not None:
        load_backbone(model, weights, expert_noise=expert_noise)
    return model


def save_model(
    model: CrossEarthSAR, folder: str | Path, *, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Writes `model.safetensors` and `config.json` into `folder`; `weights` replaces the model's own."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if weights is None else weights
    save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, folder / WEIGHTS_FILE)
    config = json.dumps(to_mapping(model.config), indent=2)
    (folder / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")


def load_model(path: str | Path, *, device: str | torch.device = "cpu") -> CrossEarthSAR:
    """The model saved in folder `path`, in eval mode. Nothing is unpickled.

    Raises:
        InputError: when a file is missing or damaged, or weights and config do not fit each other.
    """
    folder = Path(path)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(
                f"no model in {folder}",
                got=f"{name} is missing",
                expected=f"{CONFIG_FILE} and {WEIGHTS_FILE}",
                fix="give the folder that save_model or a training run wrote",
            )
    reading = folder / CONFIG_FILE
    try:
        mapping = json.loads(reading.read_text(encoding="utf-8"))
        reading = folder / WEIGHTS_FILE
        state = load_file(reading)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise InputError(
            f"{reading} cannot be read", got=str(error), fix="copy it again from where it came"
        ) from error
    try:
        config = from_mapping(ModelConfig, mapping)
    except InputError as error:
        raise InputError(
            f"{folder / CONFIG_FILE} describes no model",
            got=str(error),
            fix="use the config.json that was saved with the weights",
        ) from error
    model = CrossEarthSAR(config)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"{WEIGHTS_FILE} and {CONFIG_FILE} in {folder} do not fit each other",
            got=str(error),
            fix="use the two files of one save_model call or training run",
        ) from error
    return model.to(device).eval()


def _sparse_ffn(moe: MoEConfig, dim: int, hidden_dim: int) -> PhysicsGuidedMoE:
    return PhysicsGuidedMoE(
        dim,
        hidden_dim,
        num_experts=moe.num_experts,
        top_k=moe.top_k,
        gate=moe.gate,
        num_descriptors=len(moe.descriptors),
        backend=moe.backend,
    )


def _starts(length: int, crop: int, stride: int) -> list[int]:
    last = max(length - crop, 0)
    return [*range(0, last, stride), last]


def _statistics(image_BCHW: Tensor, db_mean: Tensor | None, db_std: Tensor | None) -> tuple[Tensor, Tensor]:
    """The given statistics, checked; each image's own when neither is given."""
    if db_mean is None and db_std is None:
        return db_statistics(image_BCHW)
    if db_mean is None or db_std is None:
        raise InputError(
            "statistics come as a pair",
            got=f"{'db_std' if db_mean is None else 'db_mean'} alone",
            expected="db_mean and db_std, or neither",
        )
    bands = tuple(image_BCHW.shape[1:2])
    for name, given in (("db_mean", db_mean), ("db_std", db_std)):
        if tuple(given.shape) not in (bands, (1, *bands), tuple(image_BCHW.shape[:2])):
            raise InputError(
                f"{name} does not fit the bands",
                got=f"shape {tuple(given.shape)}",
                expected=f"(C,) = {bands} or (B, C) = {tuple(image_BCHW.shape[:2])}",
            )
    return db_mean, db_std


def _checked_amplitude(image_BCHW: Tensor) -> Tensor:
    """The image, as floating point, when `predict` can read it."""
    is_image = (
        image_BCHW.ndim == 4
        and 1 <= image_BCHW.shape[1] <= 3
        and image_BCHW.numel() > 0
        and not image_BCHW.is_complex()
    )
    if not is_image:
        raise InputError(
            "predict reads linear amplitude images",
            got=f"{image_BCHW.dtype}, shape {tuple(image_BCHW.shape)}",
            expected="real (B, C, H, W) with 1 to 3 bands and no empty axis",
            fix="take abs() of complex data, image[None] for a missing axis",
        )
    if not image_BCHW.is_floating_point():
        image_BCHW = image_BCHW.float()  # counts as sensors deliver them; torch has no padding for uint16
    bad = ~(torch.isfinite(image_BCHW) & (image_BCHW >= 0))
    if bool(bad.any()):
        raise InputError(
            "predict reads linear amplitude images",
            got=f"{int(bad.sum())} negative or non-finite pixels",
            expected="finite values >= 0",
            fix="convert dB with 10 ** (db / 20); set nodata to 0",
        )
    return image_BCHW
