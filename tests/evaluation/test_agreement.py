"""Mean Agreement against a count by hand, ignored pixels, and folders that do not fit each other."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.agreement import image_agreement, mean_agreement


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def folders(root: Path, labels_TNHW: np.ndarray) -> list[Path]:
    for teacher, images in enumerate(labels_TNHW):
        for i, image in enumerate(images):
            save(root / f"t{teacher}" / "sar" / f"{i}.png", image)
    return [root / f"t{teacher}" for teacher in range(len(labels_TNHW))]


def test_against_a_loop_over_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, 3, 9, 7))
    labels[rng.random(labels.shape) < 0.2] = 255
    found = mean_agreement(folders(tmp_path, labels))
    shares = []
    for i in range(3):
        pixels = [labels[:, i, y, x].tolist() for y in range(9) for x in range(7)]
        counted = [p for p in pixels if 255 not in p]
        shares.append(sum(len(set(p)) == 1 for p in counted) / len(counted))
    assert found.mean == pytest.approx(sum(shares) / 3)
    assert list(found.per_image.values()) == pytest.approx(shares)
    assert found.compared == pytest.approx((labels != 255).all(axis=0).mean())
    for a, b in itertools.combinations(range(4), 2):
        both = [(labels[a, i] != 255) & (labels[b, i] != 255) for i in range(3)]
        each = [(labels[a, i] == labels[b, i])[both[i]].mean() for i in range(3)]
        assert found.pairwise[a, b] == found.pairwise[b, a] == pytest.approx(np.mean(each))
    assert np.diag(found.pairwise) == pytest.approx(1)
    assert "Mean Agreement of 4 teachers over 3 images" in found.to_text()


def test_images_count_alike_whatever_their_size(tmp_path: Path) -> None:
    for name, side, other in (("small", 2, 1), ("large", 20, 0)):
        save(tmp_path / "a" / f"{name}.png", np.zeros((side, side)))
        save(tmp_path / "b" / f"{name}.png", np.full((side, side), other))
    assert mean_agreement([tmp_path / "a", tmp_path / "b"]).mean == 0.5


def test_an_image_without_a_pixel_does_not_count(tmp_path: Path) -> None:
    share, pixels, pairwise = image_agreement(np.array([[[255, 1]], [[1, 255]]]))
    assert math.isnan(share)
    assert pixels == 0
    assert math.isnan(pairwise[0, 1])
    labels = np.array([[[[255, 255]], [[1, 2]]], [[[0, 0]], [[1, 1]]]])
    found = mean_agreement(folders(tmp_path, labels))
    assert found.mean == 0.5
    content = found.to_mapping()
    assert content["images_without_a_pixel"] == 1
    assert content["per_image"] == {"sar/0.png": None, "sar/1.png": 0.5}


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    roots = folders(tmp_path, np.zeros((2, 2, 4, 4)))
    for bad, words in (
        (roots[:1], "between teachers"),
        ([*roots, tmp_path / "none"], "no folder of label maps"),
    ):
        with pytest.raises(InputError, match=words):
            mean_agreement(bad)
    (roots[1] / "sar" / "0.png").unlink()
    with pytest.raises(InputError, match=r"1 images are not in every folder[\s\S]*sar/0.png"):
        mean_agreement(roots)
    assert mean_agreement(roots, allow_missing=True).left_out == ("sar/0.png",)
    save(roots[1] / "sar" / "1.png", np.zeros((4, 5)))
    with pytest.raises(InputError, match="differ in size"):
        mean_agreement(roots, allow_missing=True)
    save(roots[1] / "sar" / "1.png", np.full((4, 4), 7))
    with pytest.raises(InputError, match="no label map in the seven classes"):
        mean_agreement(roots, allow_missing=True)
    (roots[1] / "sar" / "1.png").unlink()
    (roots[1] / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="is not finished"):
        mean_agreement(roots)
