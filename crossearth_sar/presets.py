"""What a whole model is, its sizes, and two ResNets. A preset is a function that returns a full config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from crossearth_sar.config import require, require_range
from crossearth_sar.decoder import DecoderConfig
from crossearth_sar.descriptors import PAPER_DESCRIPTORS, SCALE_FREE_DESCRIPTORS, DescriptorName
from crossearth_sar.descriptors.scale_free import MIN_PATCH
from crossearth_sar.errors import InputError, nearest
from crossearth_sar.ground_scale import require_pixel_m
from crossearth_sar.moe import ExpertSpec, PhysicsGuidedMoE
from crossearth_sar.moe.router import Gate
from crossearth_sar.peft import EarthAdapterConfig
from crossearth_sar.resnet import ResNetConfig
from crossearth_sar.vit import ViTConfig


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """The sparse FFN of every block (METHOD sec. 2)."""

    num_experts: int = 6
    """Experts per block."""

    top_k: int = 1
    """Experts that a token goes to."""

    gate: Gate = "straight_through"
    """normalized is the paper's, eq. (9), and the layer's own default (PhysicsGuidedMoE): with one expert a
    token it is the constant 1 and sends the router no gradient of the task, so that the balance loss alone
    trains it. straight_through has the same values and does send it, and was no worse in any ablation
    (bench/reports/ablations-sim-gates, -normalized): hence the default of whole models."""

    expert: ExpertSpec = field(default_factory=ExpertSpec)
    """What an expert is."""

    descriptors: tuple[DescriptorName, ...] = PAPER_DESCRIPTORS
    """Those of the image that the router sees; an empty list for none. entropy, enl and roughness are the
    paper's; direction_entropy, looks, correlation and variation are scale-free: no gain moves them (METHOD
    sec. 1). Both sets may be named, in any order."""

    local_physics: bool = False
    """Whether the router also sees the scale-free descriptors of each token's own patch."""

    standardize: bool = True
    """Running standardisation of the descriptors; false is the paper taken literally."""

    balance_weight: float = 0.005
    """Weight of the balance loss L_BC, per layer."""

    backend: str = "auto"
    """What computes the experts: auto takes the best that works here; `crossearth-sar info` lists them."""

    def make_ffn(self, dim: int, hidden_dim: int) -> PhysicsGuidedMoE:
        """The layer itself, (B, T, dim) to the same."""
        return PhysicsGuidedMoE(
            dim,
            hidden_dim,
            num_experts=self.num_experts,
            top_k=self.top_k,
            gate=self.gate,
            num_descriptors=self.num_descriptors,
            expert=self.expert,
            backend=self.backend,
        )

    @property
    def num_descriptors(self) -> int:
        """P: columns of the router that are for physics, the image's and then the patch's."""
        return len(self.descriptors) + (len(SCALE_FREE_DESCRIPTORS) if self.local_physics else 0)

    def __post_init__(self) -> None:
        require_range(self, "moe.", 1, 1024, "num_experts")
        require(1 <= self.top_k <= self.num_experts, "moe.top_k", self.top_k, f"1 .. {self.num_experts}")
        require_range(self, "moe.", 0, 1e6, "balance_weight")
        require(
            len(set(self.descriptors)) == len(self.descriptors),
            "moe.descriptors",
            self.descriptors,
            "each name once",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A complete CrossEarthSAR."""

    num_classes: int
    """Classes that are predicted; without a decoder, none are, whatever it says."""

    vit: ViTConfig | None = None
    """The transformer; null where there is a resnet."""

    resnet: ResNetConfig | None = None
    """A ResNet in the transformer's place, without experts: moe null, and no adapter."""

    moe: MoEConfig | None = field(default_factory=MoEConfig)
    """The sparse FFNs; null makes every FFN dense (the DINOv2 baseline)."""

    decoder: DecoderConfig | None = field(default_factory=DecoderConfig)
    """The segmentation head; null for a backbone alone, as self-supervised training has it."""

    adapter: EarthAdapterConfig | None = None
    """An Earth-Adapter on the backbone's blocks, or null."""

    crop_size: int = 512
    """Side of the training crop, pixels."""

    window_size: int | None = None
    """Side of the windows of slide inference, pixels; null: the crop's."""

    crop_stride: int = 341
    """Step from window to window of slide inference, pixels."""

    pixel_m: float | None = None
    """Ground spacing it works at, metres per pixel; images that say theirs are brought to it by power
    averaging (ground_scale.py). null: images are taken as they are."""

    bands: int | None = None
    """Bands of the images that it was trained on, 1 to 3; null: it takes any number."""

    def __post_init__(self) -> None:
        require_pixel_m(self.pixel_m)
        require(self.bands in (None, 1, 2, 3), "bands", self.bands, "1 to 3, or null")
        require_range(self, "", 1, 254, "num_classes")  # 255 is «no class»
        require_range(self, "", 1, 65536, "crop_size", "window_size", "crop_stride")
        self._check_backbone()
        for name in ("crop_size", "window_size"):
            side = getattr(self, name)
            require(
                side is None or (side >= 1 and side % self.backbone.size_multiple == 0),
                name,
                side,
                f"a multiple of {self.backbone.size_multiple}",
            )
        require(
            1 <= self.crop_stride <= self.window,
            "crop_stride",
            self.crop_stride,
            f"1 .. {self.window}, the side of the windows",
        )

    def _check_backbone(self) -> None:
        if (self.vit is None) == (self.resnet is None):
            raise InputError(
                "a model has one backbone",
                got=f"vit {'null' if self.vit is None else 'and resnet'}",
                expected="vit or resnet, and null for the other",
            )
        if self.vit is None:
            for name, value in (("moe", self.moe), ("adapter", self.adapter)):
                require(value is None, name, value, "null with a resnet: they are for transformer blocks")
        elif self.moe is not None and self.moe.local_physics:
            patch = self.vit.patch_size
            require(
                patch >= MIN_PATCH, "vit.patch_size", patch, f"{MIN_PATCH} or more with moe.local_physics"
            )

    @property
    def backbone(self) -> ViTConfig | ResNetConfig:
        """What the feature maps come from: its `map_channels`, `map_strides` and `size_multiple`."""
        found = self.vit or self.resnet
        assert found is not None, "checked when built"
        return found

    def require_decoder(self) -> DecoderConfig:
        """The decoder's settings.

        Raises:
            InputError: of a backbone without a decoder, which has no classes.
        """
        if self.decoder is None:
            raise InputError(
                "the model is a backbone without a decoder: it gives features, and no classes",
                got="decoder null",
                fix="train a decoder on it: crossearth-sar finetune --set weights=FOLDER",
            )
        return self.decoder

    @property
    def window(self) -> int:
        """Side of the windows of slide inference, pixels."""
        return self.window_size or self.crop_size


def crossearth_sar_tiny(num_classes: int) -> ModelConfig:
    """For a laptop: every part is there in small, under 128-pixel crops, patch 8, LayerScale 1.

    From scratch within minutes: hence a convolutional stem, and an FPN instead of Mask2Former, which was a
    third of a step.
    """
    return ModelConfig(
        num_classes=num_classes,
        vit=ViTConfig(
            dim=96,
            depth=4,
            num_heads=3,
            out_blocks=(0, 1, 2, 3),
            patch_size=8,
            stem=(16, 32),
            image_size=128,
            layer_scale=1.0,
        ),
        decoder=DecoderConfig(kind="fpn", channels=32, class_weight=1.0, dice_weight=1.0),
        crop_size=128,
        crop_stride=85,
    )


def crossearth_sar_s(num_classes: int) -> ModelConfig:
    """ViT-S, 12 blocks of 384; 93M parameters in the backbone, 22M active («90M / 20M» in the paper)."""
    return ModelConfig(
        num_classes=num_classes, vit=ViTConfig(dim=384, depth=12, num_heads=6, out_blocks=(2, 5, 8, 11))
    )


def crossearth_sar_b(num_classes: int) -> ModelConfig:
    """ViT-B, 12 blocks of 768; 370M parameters in the backbone, 87M active («300M / 80M» in the paper)."""
    return ModelConfig(
        num_classes=num_classes, vit=ViTConfig(dim=768, depth=12, num_heads=12, out_blocks=(2, 5, 8, 11))
    )


def crossearth_sar_l(num_classes: int) -> ModelConfig:
    """ViT-L, 24 blocks of 1024; 1312M parameters in the backbone, 305M active («1.3B / 300M»)."""
    return ModelConfig(
        num_classes=num_classes, vit=ViTConfig(dim=1024, depth=24, num_heads=16, out_blocks=(7, 11, 15, 23))
    )


def resnet50(num_classes: int) -> ModelConfig:
    """ResNet-50, 23.5M parameters in the backbone, under the decoder of DI3CL's published tables, UperNet."""
    return _resnet(num_classes, ResNetConfig())


def resnet101(num_classes: int) -> ModelConfig:
    """ResNet-101, 42.5M parameters in the backbone; the rest as resnet50."""
    return _resnet(num_classes, ResNetConfig(depths=(3, 4, 23, 3)))


def _resnet(num_classes: int, resnet: ResNetConfig) -> ModelConfig:
    decoder = DecoderConfig(kind="upernet", channels=512, class_weight=1.0, dice_weight=1.0)
    return ModelConfig(num_classes=num_classes, resnet=resnet, moe=None, decoder=decoder)


_PRESETS: dict[str, Callable[[int], ModelConfig]] = {
    preset.__name__: preset
    for preset in (
        crossearth_sar_tiny, crossearth_sar_s, crossearth_sar_b, crossearth_sar_l, resnet50, resnet101
    )
}  # fmt: skip


def model_preset(name: str, num_classes: int) -> ModelConfig:
    """The config called `name`; an unknown name is an InputError that lists them."""
    if name not in _PRESETS:
        raise InputError(f"unknown model {name!r}{nearest(name, _PRESETS)}", expected=" | ".join(_PRESETS))
    return _PRESETS[name](num_classes)
