"""`save_pretrained`, `from_pretrained` and `push_to_hub`, over the one folder format of the package.

huggingface_hub's mixin does the traffic; what lies in a folder is what `save_model` writes, and a model card.
Nothing is fetched unless `from_pretrained` is given the id of a repository on the hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from crossearth_sar.errors import InputError

MODEL_CARD = """\
---
{{ card_data }}
---

# {{ title }}

Semantic segmentation of SAR images into {{ num_classes }} classes: {{ backbone }}, {{ decoder }};
{{ parameters }} parameters.

```python
from crossearth_sar import CrossEarthSAR

model = CrossEarthSAR.from_pretrained("{{ repo_id | default('FOLDER-OR-REPOSITORY', true) }}")
classes = model.predict(image)  # (B, C, H, W) linear amplitude, 1 to 3 bands -> (B, H, W)
```

Images are linear amplitude; each domain's mean and standard deviation in dB may be given to `predict`, else
those of the image are used.

## Classes

{{ classes | default('Their order is that of the training data: fill in the names.', true) }}

## Training data

{{ training_data | default('Fill in: sensors, bands, polarizations, regions, labels.', true) }}

## Scores

{{ scores | default('Fill in: domain, mIoU, how it was measured.', true) }}

## Limits

{{ limits | default('Fill in: domains and classes that were not tried, and those where it fails.', true) }}
"""

_DECODER_WORDS = {
    "mask2former": "a Mask2Former decoder",
    "fpn": "an FPN decoder",
    "upernet": "a UperNet decoder",
    "linear": "a linear decoder",
    None: "no decoder",
}


def _backbone_words(config: Any) -> str:
    moe, vit = config.moe, config.vit
    if vit is None:
        return f"a ResNet of {2 + 3 * sum(config.resnet.depths)} layers"
    ffn = f"{moe.num_experts} experts per block, {moe.top_k} active" if moe else "dense FFNs"
    return f"a vision transformer of DINOv2's form, {vit.depth} blocks of width {vit.dim}, {ffn}"


def _no_folder(folder: Path) -> InputError:
    found = f"{folder.parent} is no folder"
    if folder.parent.is_dir():
        beside = sorted(path.name + "/" for path in folder.parent.iterdir() if path.is_dir())
        found = f"{folder.parent} holds {', '.join(beside[:8]) or 'no folder'}{' …' if beside[8:] else ''}"
    return InputError(
        f"no model folder {folder}",
        got=found,
        expected="a folder with config.json and model.safetensors, or a repository «owner/name»",
        fix="correct the path; the hub is asked only where no folder has the owner's name",
    )


class HubFolder(
    ModelHubMixin,
    library_name="crossearth-sar",
    tags=["sar", "remote-sensing", "mixture-of-experts"],
    pipeline_tag="image-segmentation",
    license="apache-2.0",
    model_card_template=MODEL_CARD,
):
    """Mixin of a model class with `_save_pretrained(folder)`, `_from_folder(folder, …)` and `class_names`."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name_or_path: str | Path, **options: Any
    ) -> Self:
        """The model of a local folder, or of a repository on the hub («owner/name»), which is downloaded.

        Args:
            name_or_path: a folder that save_pretrained, save_model or a training run wrote, or a
                repository's id.
            options: of huggingface_hub (revision, token, cache_dir, local_files_only, force_download), and
                `device` and `backend` as in `load_model`.

        Raises:
            InputError: no such folder, where the name can be no repository or begins with a folder that is
                here («runs/modle»); the hub has no such repository; or its files do not fit.
        """
        folder = Path(name_or_path).expanduser()
        if folder.is_dir():
            return cls._from_pretrained(model_id=str(folder), **options)
        text = str(name_or_path)
        is_path = isinstance(name_or_path, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1
        if is_path or folder.parent.is_dir():
            raise _no_folder(folder)
        try:
            return super().from_pretrained(text, **options)
        except (RepositoryNotFoundError, LocalEntryNotFoundError) as error:
            raise InputError(
                f"the model {text} cannot be had",
                got=f"no folder {folder} here, and from the hub: {str(error).strip().splitlines()[0]}",
                expected="a folder with config.json and model.safetensors, or a repository «owner/name»",
            ) from error

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, device: Any = "cpu", backend: str = "auto", **options: Any
    ) -> Self:
        if Path(model_id).is_dir():
            return cls._from_folder(Path(model_id), device=device, backend=backend)
        options.pop("config", None)  # read again, and checked, with the weights
        files = ["config.json", "model.safetensors"]
        folder = Path(snapshot_download(model_id, allow_patterns=files, **options))
        return cls._from_folder(folder, device=device, backend=backend)

    @classmethod
    def _from_folder(cls, folder: Path, **options: Any) -> Any:
        raise NotImplementedError

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card: what the model's config says, and `kwargs` (title, classes, training_data, scores, …)."""
        config: Any = self.config  # type: ignore[attr-defined]
        count = sum(p.numel() for p in self.parameters())  # type: ignore[attr-defined]
        known = {
            "title": "CrossEarth-SAR",
            "num_classes": config.num_classes,
            "backbone": _backbone_words(config),
            "decoder": _DECODER_WORDS[config.decoder.kind if config.decoder else None],
            "parameters": f"{count / 1e6:.1f}M",
        }
        names: Any = self.class_names  # type: ignore[attr-defined]
        if names is not None:
            known["classes"] = "\n".join(f"{i}. {name}" for i, name in enumerate(names))
        return super().generate_model_card(*args, **{**known, **kwargs})
