"""Stand-ins: one per row, with the row's kind of gap and number of classes, and no place seen twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from crossearth_sar.data.datasets.tasks import SEVEN_CLASSES
from crossearth_sar.data.sample import IGNORE_INDEX
from crossearth_sar.data.simulator.scenes import SimulatorConfig, simulate
from crossearth_sar.decibels import to_db
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.miniature import (
    SIMULATED_MAPS,
    SIMULATED_TASKS,
    STAND_INS,
    draw_tiles,
    gap_between,
    held_out_scenes,
    join_tiles,
    one_per_gap,
    pretraining_sensors,
    scenes_of,
    stand_in,
)
from crossearth_sar.evaluation.registry import BENCHMARKS, DOMAIN_GAPS


def test_every_row_has_a_stand_in() -> None:
    assert list(STAND_INS) == [f"{key}-sim" for key in BENCHMARKS]
    assert len({(r.source_key, r.target, r.benchmark.target) for r in STAND_INS.values()}) == 22


@pytest.mark.parametrize("key", BENCHMARKS)
def test_same_gap_and_as_many_classes(key: str) -> None:
    row, paper = STAND_INS[f"{key}-sim"], BENCHMARKS[key]
    assert gap_between(row.source, row.target) == gap_between(row.target, row.source) == paper.gap
    assert len(row.task.scored) == paper.categories
    reached = {name for name in SIMULATED_MAPS[row.task.key].values() if name != "ignore"}
    assert reached == set(row.task.classes.names), "a class that no simulated pixel has scores nothing"


def test_gaps_are_told_apart() -> None:
    plain = SimulatorConfig()
    assert gap_between(plain, replace(plain, seed=3, length=7)) == ""
    assert gap_between(plain, replace(plain, looks=1, region="coastal")) == "region+platform"
    with pytest.raises(InputError, match="no gap names"):
        gap_between(plain, replace(plain, texture_order=2.0))


def test_no_place_is_both_trained_on_and_scored() -> None:
    for row in STAND_INS.values():
        train = scenes_of(row, "train", count=2, size=32)
        others = (scenes_of(row, "test", count=2, size=32), held_out_scenes(row, count=2, size=32))
        assert train.seed not in {other.seed for other in others}
    seen = {sensor.seed for sensor in pretraining_sensors(12)}
    assert len(seen) == 12
    assert not seen & {
        scenes_of(r, s, count=1, size=32).seed for r in STAND_INS.values() for s in ("train", "test")
    }


def test_rows_of_one_source_share_their_training() -> None:
    shared = {}
    for row in STAND_INS.values():
        images = (scenes_of(row, "train", count=4, size=64), row.task.key)
        assert shared.setdefault(row.source_key, images) == images
    assert len(shared) == 17


def test_pretraining_meets_neither_span_nor_parts() -> None:
    sensors = pretraining_sensors(30)
    assert {s.region for s in sensors} == {"temperate_north", "arid_south", "coastal"}
    assert all(s.polarization != "full" and s.part == "amplitude" for s in sensors)
    assert sensors == pretraining_sensors(30)
    assert sensors != pretraining_sensors(30, seed=1)


def test_tiles_are_the_scenes_in_order() -> None:
    config = SimulatorConfig(length=2, image_size=32)
    tiles = draw_tiles(config, None, 16)
    assert len(tiles) == 8
    scene = simulate(config, 1)
    assert torch.equal(tiles.image_NHW[5], torch.from_numpy(scene.amplitude)[:16, 16:])
    assert torch.equal(tiles.mask_NHW[6].long(), torch.from_numpy(scene.mask)[16:, :16])
    decibels = to_db(torch.cat([tiles.image_NHW.flatten()]))
    torch.testing.assert_close(tiles.db_mean_N, decibels.mean().expand(8))
    assert len(join_tiles([tiles, tiles])) == 16
    with pytest.raises(InputError, match="tile"):
        draw_tiles(config, None, 20)


def test_classes_follow_the_map() -> None:
    config = SimulatorConfig(length=1, image_size=64)
    plain = draw_tiles(config, None, 64).mask_NHW
    for task in SIMULATED_TASKS.values():
        mapped = draw_tiles(config, task, 64).mask_NHW
        for index, name in enumerate(SEVEN_CLASSES.names):
            onto = SIMULATED_MAPS[task.key][name]
            expected = IGNORE_INDEX if onto == "ignore" else task.classes.names.index(onto)
            assert (mapped[plain == index] == expected).all()


def test_keys() -> None:
    assert stand_in("N2S") is stand_in("N2S-sim")
    assert [STAND_INS[key].gap for key in one_per_gap()] == list(DOMAIN_GAPS)
    with pytest.raises(InputError, match="no stand-in 'N2X'"):
        stand_in("N2X")
