"""Pseudo labels: class maps, pairs, windows, what is written, resuming, teachers of each kind, bad input."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from crossearth_sar.data.datasets.official import OfficialDataset
from crossearth_sar.data.datasets.pretraining import PRETRAINING_SOURCES
from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.errors import InputError
from crossearth_sar.model import build_model, load_model, save_model
from crossearth_sar.pseudo_labels.labelling import (
    IGNORED_GROUP,
    LabelSettings,
    check_pairs,
    label_pair,
    read_label,
    read_optical,
    teacher_class_map,
    write_pseudo_labels,
)
from crossearth_sar.pseudo_labels.pairs import OPTICAL_TWINS, Pair, pairs_of, require_paired, source_pairs
from crossearth_sar.pseudo_labels.teachers import Teacher, adapter_teacher, open_teacher
from crossearth_sar.whole import NotWritten

SEVEN = SEVEN_CLASSES.names


def by_level(num_classes: int, device: str) -> Callable[[Tensor], Tensor]:
    """Logits that are highest for class red // 30."""
    levels = torch.arange(num_classes, device=device).view(1, -1, 1, 1) * 30.0 + 15
    return lambda image: -(image[:, :1] - levels).abs()


def level_teacher(classes: tuple[str, ...] = SEVEN, **more: int) -> Teacher:
    return adapter_teacher(by_level, "levels", classes=classes, **more)


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def ramp(height: int = 40, width: int = 56) -> np.ndarray:
    """(H, W, 3) uint8 whose columns run through classes 0..6, eight columns each."""
    red = np.broadcast_to((np.arange(width) * 7 // width * 30 + 15).astype(np.uint8), (height, width))
    return np.repeat(red[..., None], 3, axis=2)


def tree(root: Path, count: int = 3) -> Path:
    for i in range(count):
        save(root / "sar" / f"{i}.png", np.full((40, 56), i + 1, np.uint8))
        save(root / "opt" / f"{i}.png", ramp())
    return root


EXPECTED = np.broadcast_to(np.arange(56) * 7 // 56, (40, 56))


@pytest.mark.parametrize("key", OPTICAL_TWINS)
def test_every_source_reads_what_is_written(key: str, tmp_path: Path) -> None:
    spec = PRETRAINING_SOURCES[key].spec
    stars = {
        "SEN12": ("ROIs1_a/s1_3/ROIs1_a_s1_3_p1.png", "ROIs1_a/s2_3/ROIs1_a_s2_3_p1.png"),
        "OSdataset": ("512/train/sar7.png", "512/train/opt7.png"),
        "QXS-SAROPT": ("sar_256_oc_0.2/1.png", "opt_256_oc_0.2/1.png"),
        "WHU-SEN-City": ("wuhan/sar/a.png", "wuhan/opt/a.jpg"),
    }.get(key, ("sar/1.png", "opt/1.tif"))
    save(tmp_path / key / stars[0], np.full((40, 56), 9, np.uint8))
    save(tmp_path / key / stars[1], ramp())
    pairs, single = source_pairs(spec, tmp_path / key)
    assert single == []
    assert [pair.name for pair in pairs] == [stars[0]]
    output = tmp_path / "pseudo"
    write_pseudo_labels(pairs, output, level_teacher(), teacher_class_map(SEVEN), LabelSettings())
    sample = OfficialDataset(spec, tmp_path, "all", pseudo_labels=output / "labels")[0]
    labels = sample["mask"].numpy()
    small = labels[:: labels.shape[0] // 40, :: labels.shape[1] // 56][:40, :56]
    assert set(np.unique(small)) == set(range(7))
    if not spec.upsample:
        assert np.array_equal(labels, EXPECTED)


def test_manifest_resume_and_atomic_files(tmp_path: Path) -> None:
    pairs, _ = pairs_of(tree(tmp_path), "sar/*.*", "opt/*.*")
    output, classes = tmp_path / "out", teacher_class_map(SEVEN)
    settings = LabelSettings(confidence=True)
    write_pseudo_labels(pairs[:1], output, level_teacher(), classes, settings)
    first = output / "labels" / pairs[0].name
    before = first.stat().st_mtime_ns
    (output / "labels" / pairs[1].name).unlink(missing_ok=True)
    manifest = write_pseudo_labels(pairs, output, level_teacher(), classes, settings)
    assert first.stat().st_mtime_ns == before, "a finished label map is not made again"
    assert set(manifest["files"]) == {pair.name for pair in pairs}
    assert manifest == json.loads((output / "manifest.json").read_text())
    assert manifest["files"][pairs[0].name]["pixels"] == dict.fromkeys(SEVEN, 320) | {"ignore": 0}
    assert len(manifest["files"][pairs[0].name]["sha256"]) == 64
    assert list(manifest["teacher"]["sha256"]) == ["test_labelling.py"]
    assert not list(output.rglob("*.partial"))
    assert np.array_equal(read_label(first), EXPECTED)
    assert np.array(Image.open(output / "confidence" / pairs[0].name)).min() > 250
    with pytest.raises(InputError, match="other settings\n  got: settings"):
        write_pseudo_labels(pairs, output, level_teacher(), classes, LabelSettings(threshold=0.5))
    save(first, np.full((4, 4), 9, np.uint8))
    (output / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "files"}))
    with pytest.raises(InputError, match="no label map in the seven classes"):
        write_pseudo_labels(pairs, output, level_teacher(), classes, settings)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, _ = pairs_of(tree(tmp_path, 1), "sar/*.*", "opt/*.*")

    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    classes, output = teacher_class_map(SEVEN), tmp_path / "out"
    write_pseudo_labels([], output, level_teacher(), classes, LabelSettings())
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(NotWritten, match="no space"):
        write_pseudo_labels(pairs, output, level_teacher(), classes, LabelSettings())
    assert [path for path in output.rglob("*") if path.is_file()] == [output / "manifest.json"]


def test_groups_add_up_before_the_best_is_taken() -> None:
    content = {"classes": {"oak": "forest", "pine": "forest", 2: "water"}, "unmapped": "background"}
    found = teacher_class_map(("oak", "pine", "sea", "sky"), content)
    assert found.unmapped == ("sky",)
    probability = torch.tensor([0.3, 0.25, 0.4, 0.05]).view(1, 4, 1, 1)
    grouped = found.grouped(probability)[0, :, 0, 0]
    expected = torch.zeros(IGNORED_GROUP + 1)
    expected[SEVEN.index("forest")], expected[SEVEN.index("water")] = 0.55, 0.4
    expected[SEVEN.index("background")] = 0.05
    assert torch.allclose(grouped, expected)
    assert teacher_class_map(("a", "b"), {"classes": {"a": "road"}}).groups == (1, IGNORED_GROUP)


def test_threshold_ignored_classes_and_missing_values(tmp_path: Path) -> None:
    pairs, _ = pairs_of(tree(tmp_path, 1), "sar/*.*", "opt/*.*")
    content = {"classes": {"c0": "water", "c1": "ignore"}, "unmapped": "background"}
    teacher = level_teacher(tuple(f"c{i}" for i in range(7)))
    label, confidence = label_pair(
        pairs[0], teacher, teacher_class_map(teacher.classes, content), LabelSettings()
    )
    assert label[0, ::8].tolist() == [2, 255, 6, 6, 6, 6, 6]
    assert confidence.min() > 200

    flat = adapter_teacher(
        lambda num_classes, device: lambda x: torch.zeros(1, 7, 5, 7), "flat", classes=SEVEN
    )
    for threshold, value in ((0.14, 0), (0.15, 255)):
        settings = LabelSettings(threshold=threshold)
        label, confidence = label_pair(pairs[0], flat, teacher_class_map(SEVEN), settings)
        assert (label == value).all()
        assert (confidence == round(255 / 7)).all()

    values = ramp().astype(np.float32) * 10
    values[3, 5] = np.nan
    np.save(tmp_path / "opt.npy", values)
    image, finite = read_optical(tmp_path / "opt.npy", LabelSettings(value_range=(0, 2550)))
    assert not finite[3, 5]
    assert finite.sum() == finite.size - 1
    assert torch.allclose(image[:, 0], torch.from_numpy(ramp()[0].T.astype(np.float32)))


def test_transparent_optical_pixels_get_no_label(tmp_path: Path) -> None:
    alpha = np.full((40, 56, 1), 255, np.uint8)
    alpha[:7] = 0
    save(tmp_path / "a.png", np.concatenate([ramp(), alpha], 2))
    image, there = read_optical(tmp_path / "a.png", LabelSettings())
    assert image.shape == (3, 40, 56)
    assert np.array_equal(there, alpha[..., 0] != 0)


def test_twins_of_different_places_are_refused(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="writes GeoTIFFs as GDAL does")
    size = {"driver": "GTiff", "height": 40, "width": 56, "dtype": "uint8", "crs": "EPSG:32633"}
    for name, count, x in (("sar", 1, 5e5), ("near", 3, 5e5 + 4), ("far", 3, 5e5 + 400)):
        where = rasterio.Affine(10, 0, x, 0, -10, 5e6)
        with rasterio.open(tmp_path / f"{name}.tif", "w", count=count, transform=where, **size) as file:
            file.write(np.ones((count, 40, 56), np.uint8))
    pair = Pair("x.png", tmp_path / "near.tif", tmp_path / "sar.tif")
    check_pairs([pair], LabelSettings())
    words = refused(lambda: check_pairs([replace(pair, optical=tmp_path / "far.tif")], LabelSettings()))
    assert "image and optical image lie in different places" in words


def test_windows_give_what_the_whole_image_gives(tmp_path: Path) -> None:
    image = torch.from_numpy(ramp().transpose(2, 0, 1).astype(np.float32))
    grouped = teacher_class_map(SEVEN).grouped
    whole = level_teacher().probabilities(image, grouped)
    windows = level_teacher(crop=16, stride=11).probabilities(image, grouped)
    assert torch.allclose(whole, windows, atol=1e-6)
    assert torch.equal(whole.argmax(0), torch.from_numpy(EXPECTED.copy()))


def test_own_model_as_teacher(tmp_path: Path) -> None:
    save_model(build_model("crossearth_sar_tiny", 7, changes={"vit": {"depth": 4}}), tmp_path / "m")
    teacher = open_teacher(tmp_path / "m")
    assert (teacher.crop, teacher.stride, teacher.classes) == (128, 85, SEVEN)
    image = torch.rand(3, 70, 90) * 255
    found = teacher.probabilities(image, teacher_class_map(SEVEN).grouped)
    assert torch.equal(found.argmax(0), load_model(tmp_path / "m").predict(image[None])[0])
    assert torch.allclose(found.sum(0), torch.ones(70, 90), atol=1e-5)
    with pytest.raises(InputError, match="3 names"):
        open_teacher(tmp_path / "m", classes=["a", "b", "c"])


def test_segformer_as_teacher(tmp_path: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_labels=7,
        id2label=dict(enumerate(SEVEN)),
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
    )
    model = SegformerForSemanticSegmentation(config).eval()
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "rescale_factor": 1 / 255})
    )
    teacher = open_teacher(tmp_path / "m")
    assert teacher.classes == SEVEN
    assert set(teacher.sha256) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    image = torch.rand(3, 64, 96) * 255
    found = teacher.probabilities(image, teacher_class_map(SEVEN).grouped)
    mean, std = torch.tensor([[0.5, 0.4, 0.3], [0.2, 0.2, 0.1]]).view(2, 3, 1, 1)
    with torch.no_grad():
        logits = model((image[None] / 255 - mean) / std).logits
    expected = torch.nn.functional.interpolate(logits, size=(64, 96), mode="bilinear").softmax(1)[0]
    assert torch.allclose(found[:7], expected, atol=1e-5)
    backbone = {k: v for k, v in model.state_dict().items() if not k.startswith("decode_head.classifier")}
    model.save_pretrained(tmp_path / "bare", state_dict=backbone)
    with pytest.raises(InputError, match=r"2 missing: decode_head\.classifier"):
        open_teacher(tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="transformers cannot load"):
        open_teacher(tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="no semantic segmentation model"):
        open_teacher(tmp_path / "bare")


def test_mask2former_as_teacher(tmp_path: Path) -> None:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    config = Mask2FormerConfig(
        backbone_config=SwinConfig(
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=2,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        dim_feedforward=16,
        num_attention_heads=2,
        num_queries=5,
        num_labels=7,
        id2label=dict(enumerate(SEVEN)),
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    model.save_pretrained(tmp_path / "m")
    teacher = open_teacher(tmp_path / "m")
    image = torch.rand(3, 50, 64) * 255
    found = teacher.probabilities(image, teacher_class_map(SEVEN).grouped)
    padded = torch.nn.functional.pad(image[None], (0, 0, 0, 14), mode="replicate") / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    with torch.no_grad():
        output = model((padded - mean) / std)
    masks = output.masks_queries_logits.sigmoid()
    scores = (output.class_queries_logits.softmax(-1)[0, :, :7, None, None] * masks[0, :, None]).sum(0)
    scores = torch.nn.functional.interpolate(scores[None], size=(64, 64), mode="bilinear")[0, :, :50]
    assert torch.allclose(found[:7], scores / scores.sum(0), atol=1e-5)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        call()
    return str(error.value)


def test_pairs_that_are_none(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "opt" / "1.png").unlink()
    pairs, single = pairs_of(root, "sar/*.*", "opt/*.*")
    assert [p.name for p in pairs] == ["sar/0.png", "sar/2.png"]
    assert "1 files have no twin\n  got: sar/1.png" in refused(lambda: require_paired(single, root))
    assert "no file matches" in refused(lambda: pairs_of(root, "sar/*.*", "optical/*.*"))
    assert "as many '*'" in refused(lambda: pairs_of(root, "sar/*.*", "*/opt/*.*"))
    save(root / "opt" / "2.bmp", ramp())
    assert "two files claim one place" in refused(lambda: pairs_of(root, "sar/*.*", "opt/*.*"))
    spec = PRETRAINING_SOURCES["DDHR-X"].spec
    assert "optical twins of DDHR-X" in refused(lambda: source_pairs(spec, root))


def test_bad_input(tmp_path: Path) -> None:
    root = tree(tmp_path)
    pairs, _ = pairs_of(root, "sar/*.*", "opt/*.*")
    classes, plain = teacher_class_map(SEVEN), LabelSettings()
    save(root / "opt" / "1.png", ramp(20, 28))
    assert "differ in size" in refused(lambda: check_pairs(pairs, plain))
    label, _ = label_pair(pairs[1], level_teacher(), classes, LabelSettings(resample=True))
    assert label.shape == (40, 56)
    assert (label[:, ::8] == EXPECTED[:, ::8]).all()
    damaged = pairs[2].optical
    damaged.write_bytes(damaged.read_bytes()[:50])
    assert str(damaged) in refused(lambda: check_pairs(pairs[2:], plain))
    np.save(root / "opt" / "0.npy", np.zeros((40, 56, 4), np.uint8))
    four = [replace(pairs[0], optical=root / "opt" / "0.npy")]
    assert "--bands" in refused(lambda: check_pairs(four, plain))
    assert "no such bands" in refused(lambda: check_pairs(four, LabelSettings(bands=(0, 1, 4))))
    save(root / "opt" / "0.png", np.zeros((40, 56), np.uint16))
    assert "--range" in refused(lambda: check_pairs(pairs[:1], plain))
    assert "threshold" in refused(lambda: LabelSettings(threshold=50))
    assert "0 < stride <= crop" in refused(lambda: level_teacher(crop=8, stride=9))
    assert "no teacher in" in refused(lambda: open_teacher(tmp_path / "none"))
    assert "no class map is given" in refused(lambda: teacher_class_map(("tree",)))
    assert "did you mean 'forest'" in refused(
        lambda: teacher_class_map(("t",), {"classes": {"t": "forrest"}})
    )
    assert "did you mean 'tree'" in refused(
        lambda: teacher_class_map(("tree",), {"classes": {"treee": "forest"}})
    )
    assert "twice" in refused(
        lambda: teacher_class_map(("tree",), {"classes": {"tree": "forest", 0: "water"}})
    )
    wrong = adapter_teacher(
        lambda num_classes, device: lambda x: torch.zeros(1, 3, 8, 8), "wrong", classes=SEVEN
    )
    image = torch.zeros(3, 40, 56)
    assert "no scores of its classes" in refused(lambda: wrong.probabilities(image, classes.grouped))
    nan = adapter_teacher(
        lambda num_classes, device: lambda x: torch.full((1, 7, 8, 8), float("nan")), "nan", classes=SEVEN
    )
    assert "not finite" in refused(lambda: nan.probabilities(image, classes.grouped))
    good, _ = pairs_of(tree(tmp_path / "again", 1), "sar/*.*", "opt/*.*")
    (tmp_path / "again" / "labels").symlink_to(tmp_path / "again")
    assert "holds the SAR images" in refused(
        lambda: write_pseudo_labels(good, tmp_path / "again", level_teacher(), classes, plain)
    )
