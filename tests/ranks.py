"""Real ranks for tests: processes of this machine, started once and given one task after another.

A task is a module-level function; it runs on all ranks at once, and what each returns comes back in rank
order. A task that takes too long ends its processes and fails, so a deadlock never hangs the suite.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.multiprocessing as mp

START_TIMEOUT_S = 120.0
CPU_ONLY = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

slow = pytest.mark.skipif("CROSSEARTH_SLOW" not in os.environ, reason="minutes: CROSSEARTH_SLOW=1 runs it")
"""For what is run by hand before a release, not at every change."""


class RankPool:
    """`size` processes in one group. `pool(function, *args)` is [function's result on each rank]."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[Any] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any, timeout: float = 240.0) -> list[Any]:
        if not self._processes:
            self._start()
            self._run(_ready, (), START_TIMEOUT_S)
        return self._run(function, arguments, timeout)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []

    def _start(self) -> None:
        context = _imported_context()
        self._results = context.Queue()
        self._tasks = [context.Queue() for _ in range(self.size)]
        port = _free_port()
        self._processes = [
            context.Process(
                target=_serve, args=(rank, self.size, port, self._tasks[rank], self._results), daemon=True
            )
            for rank in range(self.size)
        ]
        for process in self._processes:
            process.start()

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout: float) -> list[Any]:
        for tasks in self._tasks:
            tasks.put((function, arguments))
        answers: dict[int, Any] = {}
        end = time.monotonic() + timeout
        while len(answers) < self.size:
            try:
                rank, failure, answer = self._results.get(timeout=max(end - time.monotonic(), 0.01))
            except queue.Empty:
                self.close()
                missing = sorted(set(range(self.size)) - set(answers))
                raise AssertionError(f"no answer from ranks {missing} within {timeout} s") from None
            if failure is not None:
                self.close()  # the others may wait for this one in a collective call
                raise AssertionError(f"rank {rank} failed:\n{failure}")
            answers[rank] = answer
        return [answers[rank] for rank in range(self.size)]


_begun: list[Any] = []
_pools: dict[int, RankPool] = {}


def shared_pool(size: int) -> RankPool:
    """The pool of that size of this session: importing DeepSpeed takes longer than most tests."""
    if size not in _pools:
        _pools[size] = RankPool(size)
        atexit.register(_pools[size].close)
    return _pools[size]


def micro_run(output: Path, **changes: Any) -> Any:
    """The RunConfig of a run of six steps, a quarter of a second each; `changes` are dotted keys of it."""
    from crossearth_sar.config import merge, parse_overrides
    from crossearth_sar.engine.config import simulated_run

    sensor = {"sensors": "one", "resolution_m": 3.0}
    small = {
        "output": str(output),
        "steps": 6,
        "batch_size": 4,
        "validate_every": 100,
        "save_every": 100,
        "pictures": 0,
        "augment": {
            "crop_size": 64,
            "scale_min": 0.8,
            "scale_max": 1.25,
            "gain_db": 1.0,
            "max_class_share": 0.75,
        },
        "optim": {"lr": 1e-3, "warmup_steps": 2},
        "train": {"simulated": {**sensor, "length": 12, "image_size": 80}, "normalize": "domain"},
        "validation": {"simulated": {**sensor, "length": 5, "image_size": 64}, "normalize": "domain"},
        "unseen": (),
        "model": {
            "pixel_m": None,
            "bands": None,
            "moe": {"descriptors": ["entropy", "enl", "roughness"]},
            "crop_size": 64,
            "crop_stride": 64,
            "vit": {"dim": 32, "num_heads": 2, "patch_size": 16, "image_size": 64, "stem": ()},
            "decoder": {
                "kind": "mask2former",
                "class_weight": 2.0,
                "dice_weight": 5.0,
                "channels": 32,
                "num_heads": 2,
                "num_queries": 6,
                "pixel_layers": 1,
                "pixel_ffn_dim": 32,
                "query_layers": 1,
                "query_ffn_dim": 32,
                "num_points": 64,
            },
        },
    }
    overrides = parse_overrides([f"{key}={value}" for key, value in changes.items()])
    return merge(simulated_run(), _deep_update(small, overrides))


def begin(config: Any, resume: str | None = None) -> Any:
    """A run on this rank, ready to fit, with one thread; the one before gives its folder back."""
    import torch

    from crossearth_sar.engine.distributed import start_ranks
    from crossearth_sar.engine.executors.choose import executor_name
    from crossearth_sar.engine.make_run import make_run

    while _begun:
        _begun.pop().close()
    ranks = start_ranks(deepspeed=executor_name(config) == "deepspeed")
    torch.set_num_threads(1)
    run = make_run(config, ranks)
    _begun.append(run)
    run.start(resume)
    return run


@contextlib.contextmanager
def same_points_for_every_mask() -> Iterator[None]:
    """Mask2Former's loss looks at random points of each mask; in here, at the same of all, so that a batch
    has one loss however it is divided."""
    import torch

    rand = torch.rand

    def fixed(*shape: Any, **options: Any) -> torch.Tensor:
        if len(shape) != 3 or shape[-1] != 2:
            return rand(*shape, **options)
        points = rand(shape[1:], generator=torch.Generator().manual_seed(5))
        return points.to(options.get("device")).expand(shape).clone()

    torch.rand = fixed  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.rand = rand


@contextlib.contextmanager
def targets_matched_in_order() -> Iterator[None]:
    """Target n is query n's, not the cheapest's: queries are all but equal at first, and rounding would
    choose between them."""
    from transformers.models.mask2former import modeling_mask2former as theirs

    def in_order(cost: Any) -> tuple[Any, Any]:
        order = np.arange(min(cost.shape))
        return order, order

    assignment = theirs.linear_sum_assignment
    theirs.linear_sum_assignment = in_order
    try:
        yield
    finally:
        theirs.linear_sum_assignment = assignment


@contextlib.contextmanager
def optimizer_for_comparison() -> Iterator[None]:
    """AdamW whose epsilon drowns rounding: a bias whose true gradient is 0 would follow the sign of noise.

    Experts get weights that make their gradients a good part of the whole norm. And ZeRO 3 partitions the
    small parameters too.
    """
    import torch

    from crossearth_sar.engine.executors.deepspeed import executor
    from crossearth_sar.engine.optim import make_optimizer
    from crossearth_sar.engine.planning.layout import deepspeed_config

    def settings(config: Any, layout: Any) -> dict[str, Any]:
        json = deepspeed_config(config, layout)
        json["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return json

    def optimizer(model: Any, config: Any) -> torch.optim.AdamW:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith((".experts.w1", ".experts.w2")):
                    parameter.mul_(8)
        adamw = make_optimizer(model, config)
        for group in adamw.param_groups:
            group["eps"] = 1e-3
        return adamw

    executor.make_optimizer, executor.deepspeed_config = optimizer, settings
    try:
        yield
    finally:
        executor.make_optimizer, executor.deepspeed_config = make_optimizer, deepspeed_config


def _deep_update(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both_dicts = {k for k, v in changes.items() if isinstance(v, dict) and isinstance(tree.get(k), dict)}
    return {**tree, **{k: _deep_update(tree[k], v) if k in both_dicts else v for k, v in changes.items()}}


def _imported_context() -> Any:
    """Processes that are forked from one that has imported all they need: seconds per rank are saved."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["deepspeed", "crossearth_sar.engine.make_run"])
    before = dict(os.environ)
    os.environ.update(CPU_ONLY)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _ready() -> None:
    """The first task: the processes are up."""


def _serve(rank: int, size: int, port: int, tasks: Any, results: Any) -> None:
    os.environ.update(MASTER_PORT=str(port), **CPU_ONLY)
    if size > 1:  # one rank stands for a run without a launcher
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR")
        os.environ.update(zip(names, map(str, (rank, size, rank, size, "127.0.0.1")), strict=True))
    import torch

    while True:
        function, arguments = tasks.get()
        torch.set_num_threads(1)
        torch.manual_seed(0)
        try:
            results.put((rank, None, function(*arguments)))
        except BaseException:  # noqa: BLE001 - whatever it was, the test shall see it
            results.put((rank, traceback.format_exc(), None))
        while _begun:  # another pool's processes may go on in the same folder
            _begun.pop().close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
