"""CrossEarthSAR: image -> descriptors -> backbone with sparse FFNs -> decoder -> classes per pixel.

B batch, C bands (K in class scores: classes), H W pixels, P descriptors, L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from crossearth_sar.config import merge, to_mapping
from crossearth_sar.data.masked_arrays import filled_images, hide_unmeasured, measured_pixels
from crossearth_sar.decoder import Decoder, make_decoder
from crossearth_sar.descriptors import RunningStandardizer, join_tokens, named_descriptors
from crossearth_sar.errors import InputError
from crossearth_sar.ground_scale import average_power, classes_at, working_size
from crossearth_sar.hub import HubFolder
from crossearth_sar.input_contract import InputContract, checked_contract
from crossearth_sar.model_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    require_fitting_weights,
    write_config,
    write_model_files,
)
from crossearth_sar.model_output import LossTerms, ModelOutput, checked_temperature, reaching_all
from crossearth_sar.model_reading import read_model_folder, with_backend
from crossearth_sar.network_input import (
    checked_amplitude,
    network_input,
    require_statistics,
    statistics_of,
)
from crossearth_sar.peft import EarthAdapter
from crossearth_sar.presets import ModelConfig, MoEConfig, model_preset
from crossearth_sar.pretrained import load_backbone
from crossearth_sar.resnet import ResNet, ResNetOutput
from crossearth_sar.sliding import slide_scores
from crossearth_sar.vit import DenseFFN, VisionTransformer, ViTOutput
from crossearth_sar.weight_decay import undecayed

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "CrossEarthSAR",
    "LossTerms",
    "ModelOutput",
    "build_model",
    "eval_mode",
    "load_model",
    "save_model",
]


class CrossEarthSAR(nn.Module, HubFolder):
    """A SAR segmenter with physics-guided sparse experts.

    Images are linear amplitude, (B, C, H, W) with 1 to 3 bands. The descriptors are those of the first
    band, before normalisation; the backbone sees 20 log10 of the amplitude, standardised, its bands
    repeated cyclically to three channels.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = _backbone(config)
        self.decoder: Decoder | None = None
        if config.decoder is not None:
            self.decoder = make_decoder(
                config.decoder,
                in_channels=config.backbone.map_channels,
                strides=config.backbone.map_strides,
                num_classes=config.num_classes,
            )
        moe, named = config.moe, len(config.moe.descriptors) if config.moe else 0
        self.standardizer = _standardizer(moe, named)
        self.local_standardizer = _standardizer(moe, moe.num_descriptors - named if moe else 0)
        self.class_names: tuple[str, ...] | None = None
        self.palette: tuple[tuple[int, ...], ...] | None = None
        self.temperature: float | None = None  # of its probabilities: evaluation/calibration.py
        self.contract: InputContract | None = None  # what it was trained on, where that is known

    def name_classes(self, names: Sequence[str], palette: Sequence[Sequence[int]] | None = None) -> None:
        """Says what the classes are, in the order of their indices, and how to draw them (RGB, 0..255).

        Kept as `class_names` and `palette`, and saved with the model. Nothing is computed differently.

        Raises:
            InputError: unless there is one name, all different, and one colour per class.
        """
        count = self.config.num_classes
        if len(set(names)) != count or len(names) != count or not all(isinstance(n, str) for n in names):
            raise InputError(
                "the class names do not fit the model",
                got=", ".join(map(str, names)),
                expected=f"{count} different names, one per class",
            )
        colors = None if palette is None else tuple(tuple(int(v) for v in color) for color in palette)
        if colors is not None and not (
            len(colors) == count and all(len(c) == 3 and min(c) >= 0 and max(c) <= 255 for c in colors)
        ):
            raise InputError(
                "the palette does not fit the model",
                got=str(colors),
                expected=f"{count} colours [red, green, blue], 0 to 255",
            )
        self.class_names, self.palette = tuple(names), colors

    def forward(
        self,
        image_BCHW: Tensor | None,
        db_mean: Tensor | None = None,
        db_std: Tensor | None = None,
        *,
        feature_maps: Sequence[Tensor] | None = None,
    ) -> ModelOutput:
        """Linear amplitude in, logits and routing out.

        Args:
            image_BCHW: amplitude, H and W multiples of the patch size; non-negative and finite (datasets
                of this package promise it; `predict` checks). An image with a pixel that is not finite has
                NaN logits.
            db_mean, db_std: (C,) or (B, C), statistics of 20 log10(amplitude) of the images' domain; not
                given, each image's own are taken.
            feature_maps: what `features` gave earlier, in place of an image: the decoder's part alone.

        Raises:
            InputError: for more than 3 bands, statistics that do not fit them, or part of a patch; of a model
                without a decoder.
        """
        decoder = self.require_decoder()
        if feature_maps is not None:
            return ModelOutput(decoder(list(feature_maps)), ())
        assert image_BCHW is not None
        features = self.features(image_BCHW, db_mean, db_std)
        routing = tuple(r for r in features.routing if r is not None)
        return ModelOutput(decoder(reaching_all(features.feature_maps, features.tokens)), routing)

    def features(
        self, image_BCHW: Tensor, db_mean: Tensor | None = None, db_std: Tensor | None = None
    ) -> ViTOutput | ResNetOutput:
        """What the decoder is given, where there is one; arguments and errors as in `forward`."""
        pixels = network_input(image_BCHW, db_mean, db_std).to(self._weight.dtype)
        routed = self._descriptors(image_BCHW)
        if routed is not None:  # an infinite pixel is cut like a bright one: only its descriptors tell
            pixels = pixels + (0 * routed.flatten(1).sum(1)).to(pixels.dtype)[:, None, None, None]
        return self.backbone(pixels, routed)

    @property
    def _weight(self) -> nn.Parameter:
        """Any of the backbone's, for its device and type."""
        return next(self.backbone.parameters())

    def require_decoder(self) -> Decoder:
        """The decoder; InputError of a backbone without one."""
        self.config.require_decoder()
        assert self.decoder is not None, "the config says what is built"
        return self.decoder

    def loss(self, output: ModelOutput, mask_BHW: Tensor) -> LossTerms:
        """L = L_seg + L_BC, the latter summed over layers (METHOD sec. 2); mask 0..K-1 or 255."""
        parts = self.require_decoder().loss(output.decoder, mask_BHW)
        segmentation = torch.stack(list(parts.values())).sum()
        balance = segmentation.new_zeros(())
        if self.config.moe and output.routing:
            balance = torch.stack(
                [r.balance_loss(self.config.moe.balance_weight) for r in output.routing]
            ).sum()
        return LossTerms(segmentation + balance, segmentation, balance, parts)

    @torch.no_grad()
    def predict(
        self,
        image_BCHW: Tensor | np.ndarray,
        db_mean: Tensor | np.ndarray | Sequence[float] | None = None,
        db_std: Tensor | np.ndarray | Sequence[float] | None = None,
        *,
        pixel_m: float | None = None,
        taper: bool = True,
        on_window: Callable[[ModelOutput], None] | None = None,
    ) -> Tensor:
        """Classes per pixel, (B, H, W) int64, for an amplitude image of any size.

        Images larger than the crop are covered by overlapping windows whose scores are averaged; each
        window is an image of its own to the descriptors, as in training. Runs in eval mode, on the model's
        device; the classes come back on the image's, for an array in a tensor on the CPU.

        Args:
            image_BCHW, db_mean, db_std: as in `forward`, tensors, arrays or lists of numbers; statistics not
                given are those of the whole image. What a numpy masked array masks, in any band, is not
                looked at (a measured pixel is drawn in its place), and its class is 255.
            pixel_m: metres per pixel of the images, which are averaged to the model's (`ground_scale`) and
                measured there, and scores interpolated back; not given, they are taken as they are.
            taper: whether a window counts less towards its edges (`sliding.taper_weights`).
            on_window: called with each window's output, to look at the routing.

        Raises:
            InputError: for another shape, a bad pixel, or statistics that do not fit the bands; of a model
                without a decoder.
        """
        self.require_decoder()
        measured_BHW = measured_pixels(image_BCHW)
        if measured_BHW is not None:
            image_BCHW = filled_images(image_BCHW, measured_BHW)
        given = checked_amplitude(image_BCHW, self.config.bands)
        size = working_size(given.shape[-2:], pixel_m, self.config.pixel_m)
        amplitude = average_power(given, size).to(self._weight.device)
        mean, std = statistics_of(amplitude, db_mean, db_std)
        if db_mean is not None:
            require_statistics(mean, std)
        with eval_mode(self):
            scores = self.slide_scores(amplitude, mean, std, on_window, taper=taper)
        size = (given.shape[-2], given.shape[-1])
        classes = classes_at(scores, size).to(given.device)
        return classes if measured_BHW is None else hide_unmeasured(classes, measured_BHW)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should not reach, for optimizers that ask (timm's)."""
        return undecayed(self)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self, save_directory)

    @classmethod
    def _from_folder(cls, folder: Path, **options: Any) -> CrossEarthSAR:
        return load_model(folder, **options)

    def slide_scores(
        self,
        image_BCHW: Tensor,
        db_mean: Tensor,
        db_std: Tensor,
        on_window: Callable[[ModelOutput], None] | None = None,
        *,
        taper: bool = True,
    ) -> Tensor:
        """(B, K, H, W), the averaged scores of which `predict` takes the largest; in the module's mode."""
        return slide_scores(
            self, self.require_decoder(), image_BCHW, db_mean, db_std,
            crop=self.config.window, stride=self.config.crop_stride, patch=self.config.backbone.size_multiple,
            taper=taper, on_window=on_window,
        )  # fmt: skip

    def _descriptors(self, image_BCHW: Tensor) -> Tensor | None:
        """Standardised, (B, P) or, with local physics, (B, T, P); None for routers without physics."""
        moe = self.config.moe
        if moe is None or not moe.num_descriptors:
            return None
        patch = self.config.backbone.size_multiple if moe.local_physics else None
        image_BP, tokens_BT4 = named_descriptors(image_BCHW[:, :1], moe.descriptors, patch_size=patch)
        image_BP = self.standardizer(image_BP)
        if tokens_BT4 is None:
            return image_BP
        local_BT4 = self.local_standardizer(tokens_BT4.flatten(0, 1)).view_as(tokens_BT4)
        return join_tokens(image_BP, local_BT4)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode within; after it every module is in its own again, a frozen backbone in eval for instance."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


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
        name: crossearth_sar_tiny | _s | _b | _l, resnet50 or resnet101.
        changes: nested keys of ModelConfig to set on top of the preset.
        sparse: False gives the dense DINOv2 baseline of the same shape.
        weights: of the backbone, see `pretrained.load_backbone`: a file from elsewhere, a folder of
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
    """Writes `model.safetensors` and `config.json` into `folder`; `weights` replaces the model's own.

    With the config go the classes' names and colours where they are known. The MoE backend does not: it is
    chosen where the model is loaded. An older model in the folder is replaced whole or not at all.

    Raises:
        InputError: the files cannot be written.
    """
    state = model.state_dict() if weights is None else weights
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_model_files(Path(folder), tensors, _described(model))


def save_config(model: CrossEarthSAR, folder: Path) -> None:
    """Writes `config.json` alone: what `load_model` builds."""
    write_config(folder, _described(model))


def _described(model: CrossEarthSAR) -> dict[str, Any]:
    mapping = to_mapping(with_backend(model.config, "auto"))
    if model.class_names is not None:
        mapping["classes"] = to_mapping({"names": model.class_names, "palette": model.palette})
    if model.temperature is not None:
        mapping["temperature"] = model.temperature
    if model.contract is not None:
        mapping["input"] = to_mapping(model.contract)
    return mapping


def load_model(
    path: str | Path, *, device: str | torch.device = "cpu", backend: str = "auto"
) -> CrossEarthSAR:
    """The model saved in folder `path`, or that of the package called so ("tiny"), in eval mode.

    Nothing is unpickled.

    Parameters are float32, whatever type is on disk (an export in bf16 takes half the space there and no
    less memory here): `model.bfloat16()` makes them half as large.

    Args:
        backend: of the MoE layers on this machine, see `moe.PhysicsGuidedMoE`; what an older file names is
            that of the machine it was written on, and is not asked for.

    Raises:
        InputError: when a file is missing or damaged, weights and config do not fit each other, or `backend`
            does not work here.
    """
    saved = read_model_folder(path)
    config, where = with_backend(saved.config, backend), saved.folder / CONFIG_FILE
    temperature = checked_temperature(saved.extras["temperature"], where)
    contract = checked_contract(saved.extras["input"], where)
    require_fitting_weights(lambda: CrossEarthSAR(config), saved.folder)
    model = CrossEarthSAR(config)
    if saved.extras["classes"] is not None:
        _name_classes(model, saved.extras["classes"], where)
    model.temperature, model.contract = temperature, contract
    model.load_state_dict(load_file(saved.folder / WEIGHTS_FILE))
    return model.to(device).eval()


def _name_classes(model: CrossEarthSAR, classes: Any, where: Path) -> None:
    try:
        model.name_classes(classes["names"], classes.get("palette"))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"«classes» in {where} names no classes of this model",
            got=str(error),
            expected='{"names": [one per class], "palette": [[red, green, blue], …] or null}',
            fix="correct it, or remove it",
        ) from error


def _backbone(config: ModelConfig) -> VisionTransformer | ResNet:
    if config.vit is None:
        assert config.resnet is not None, "ModelConfig has one of the two"
        return ResNet(config.resnet)
    backbone = VisionTransformer(config.vit, config.moe.make_ffn if config.moe else DenseFFN)
    if config.adapter is not None:
        backbone.adapter = EarthAdapter(config.vit.dim, config.vit.depth, config.adapter)
    return backbone


def _standardizer(moe: MoEConfig | None, columns: int) -> nn.Module:
    return RunningStandardizer(columns) if moe is not None and moe.standardize and columns else nn.Identity()
