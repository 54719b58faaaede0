"""One training run: its folder, its steps, its stops and resumes, its best model and what it leaves.

What is learnt says an objective (engine/objectives/), how a step is executed an executor (engine/executors/).

What a step computes depends on (config, step, part) alone: the samples (data/stream.py), the learning rate,
and the random numbers of the losses, whose generator is seeded anew for every part of every batch. So a
resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from crossearth_sar.config import to_mapping
from crossearth_sar.data.stream import ShardedDraws
from crossearth_sar.engine.checkpoint import SaveError, load_checkpoint, load_weights, save_checkpoint
from crossearth_sar.engine.checkpoint_files import list_checkpoints, read_state, restore_interrupted
from crossearth_sar.engine.checkpoint_state import step_name
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks, any_rank, decided_by_main, mean_over_ranks
from crossearth_sar.engine.executors.base import Executor
from crossearth_sar.engine.nonfinite import NonFiniteError, first_nonfinite_layer, gather_findings
from crossearth_sar.engine.objectives.base import (
    Batch,
    Finished,
    Losses,
    Objective,
    named_rows,
    on_device,
    split_into_parts,
)
from crossearth_sar.engine.optim import learning_rate
from crossearth_sar.engine.output_folder import Claim, claim
from crossearth_sar.engine.resume import best_of, find_checkpoint, go_on_words
from crossearth_sar.engine.run_log import RunLog
from crossearth_sar.engine.stopping import StopRequest, leave_stopping_to_training
from crossearth_sar.engine.throughput import Meter, peak_tflops

FAILED_SAVES = 3
"""In a row end a run: what goes on unsaved for longer is lost at the next fault."""


class Run:
    """One run on this rank: `start`, `fit`, and `finish` once `fit` says that it is done; `close` at the end.

    Args:
        config: the run.
        ranks: this process among the others.
        objective: what is learnt.
        executor: how.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, objective: Objective, executor: Executor) -> None:
        self.config, self.ranks, self.objective, self.executor = config, ranks, objective, executor
        self.output = Path(config.output)
        self.step, self.skipped_in_a_row, self.failed_saves = 0, 0, 0
        self.best: dict[str, float] | None = None
        self._about: dict[str, Any] = {}
        self.log: RunLog | None = None
        self._claim: Claim | None = None
        self._stop: StopRequest | None = None

    @property
    def checkpoints(self) -> Path:
        return self.output / "checkpoints"

    def start(self, resume: str | None = None, owner: str = "train") -> None:
        """Takes the folder and builds what trains; with `resume`, "auto" or a checkpoint's path, restores it.

        "auto" takes the newest complete checkpoint of the output folder, or none if there is none. owner: the
        command that the folder is of.

        Raises:
            InputError: on all ranks, where the folder is another job's or command's, or a checkpoint does
                not fit.
        """
        self._claim = claim(self.output, self.ranks, owner)
        checkpoint = decided_by_main(lambda: self._found(resume), self.ranks)
        self.executor.start(self.objective.build, from_start=checkpoint is None)
        if checkpoint is not None:
            state = load_checkpoint(checkpoint, self.executor, self.objective)
            self.step, self.best = int(state["step"]), best_of(state, checkpoint.parent)
            self.say(f"resumed from {checkpoint}: {self.step} of {self.config.steps} steps are done")
        peak = peak_tflops(self.ranks.device)
        tokens, flop = self.objective.meter_images()
        self.meter = Meter(tokens, flop, self.config.batch_size, peak and peak * self.ranks.size)
        if self.ranks.is_main:
            self.log = RunLog(self.config, self.step)
            if self.log.tensorboard.note:
                self.say(self.log.tensorboard.note)

    def _found(self, resume: str | None) -> Path | None:
        restore_interrupted(self.checkpoints)
        found = find_checkpoint(self.config, resume, self.say)
        self._about = self.objective.about()
        before = read_state(found).get("about") if found is not None else None
        if before is not None:
            self.objective.check_about(before)
        return found

    def fit(self) -> bool:
        """Trains to the end. False when a signal stopped it; what was done is saved then.

        Raises:
            NonFiniteError: on all ranks, for NaN or infinity, as config.nonfinite says.
            SaveError: on all ranks, when the last save or that after a signal fails, or FAILED_SAVES in a
                row; otherwise it is reported, and training goes on.
        """
        config, stopping = self.config, False
        stop = self._stop = StopRequest()
        try:
            for batch in self.meter.timed(self._batches()):
                if self.step >= config.steps or self._out_of_patience():
                    break
                row = self._train_step(batch)
                if self.log:
                    self.log.step({**row, **self.meter.row()})
                self.step += 1
                stopping = any_rank(stop.received is not None, self.ranks)
                self._validate_and_save(stopping)
                if stopping:
                    break
        finally:
            if self.log:
                self.log.close()
        stop.restore()  # after an error close() does, so that no launcher ends a rank before it has said why
        if stopping and self.step < config.steps:
            self.say(
                f"stopped by {stop.received or 'a signal to another rank'} after step {self.step} of "
                f"{config.steps}; it is saved. Go on with the same command and --resume"
            )
            return False
        return True

    def finish(self) -> dict[str, Any]:
        """Leaves the best model, by validation, in model/, and the objective's report; a collective call."""
        model = self.executor.whole()
        of_step = self.step if self.best is None else int(self.best["step"])
        if of_step != self.step:
            self.say(f"the best validation was at step {of_step}: its model is the result")
            load_weights(self.checkpoints / step_name(of_step), model)
        if self.ranks.is_main:
            self.objective.save_result(model, self.output / "model")
        finished = Finished(self.output, self.step, of_step, self.executor.facts(), self.say)
        return self.objective.report(finished, model)

    def close(self) -> None:
        """Gives the folder back, and signals their meaning."""
        if self._stop is not None:
            self._stop.restore()
        if self._claim is not None:
            self._claim.release()

    def say(self, text: str) -> None:
        """One line to the user, from rank 0."""
        if self.ranks.is_main:
            print(text, file=sys.stderr, flush=True)

    def _batches(self) -> Iterable[Batch]:
        return self.objective.batches(self._load)

    def _load(
        self, dataset: Dataset[Any], join: Callable[[list[Any]], Batch], *, in_process: bool = False
    ) -> Iterable[Batch]:
        draws = ShardedDraws(
            first_step=self.step,
            last_step=self.config.steps,
            rank=self.ranks.rank,
            batch_size=self.config.batch_size,
            ranks=self.ranks.size,
        )
        workers = 0 if in_process else self.config.workers
        return DataLoader(
            dataset,
            batch_sampler=draws,
            collate_fn=join,
            num_workers=workers,
            prefetch_factor=self.config.prefetch if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self.ranks.device.type == "cuda",
            worker_init_fn=leave_stopping_to_training,
        )

    def _train_step(self, batch: Batch) -> dict[str, float]:
        config, executor = self.config, self.executor
        rate = learning_rate(config.optim, self.step, config.steps)
        executor.set_rate(rate)
        self.objective.train_mode(executor.module)
        buffers = [(buffer, buffer.clone()) for buffer in executor.module.buffers()]
        parts = self.objective.prepare(split_into_parts(batch, config.accumulation))
        rows: list[Tensor] = []
        for index in range(config.accumulation):
            losses = self._losses(index, parts[index])
            executor.accumulate(losses.total, index)
            row_of_part, back = named_rows(losses.values)
            rows.append(row_of_part)
        outcome = executor.outcome()
        mean = mean_over_ranks(torch.stack(rows).mean(0)).cpu()
        row: dict[str, float] = {"step": self.step, **self.objective.columns(back(mean))}
        row |= {"lr": rate, "grad_norm": outcome.grad_norm, "skipped": float(not outcome.applied)}
        if outcome.applied and math.isfinite(row["loss"]):
            self.skipped_in_a_row = 0
            self.objective.after_step(executor)
        else:
            self._meet_nonfinite(row, parts, buffers)
        return row

    def _losses(self, index: int, part: Batch) -> Losses:
        """Of this rank's part `index`, with the random numbers that are its own."""
        parts = self.ranks.size * self.config.accumulation
        number = self.ranks.rank + self.ranks.size * index
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * parts + number)
        there = on_device(part, self.ranks.device)
        return self.objective.losses(self.executor.forward, self.executor.module, there)

    def _meet_nonfinite(
        self, row: dict[str, float], parts: list[Batch], buffers: list[tuple[Tensor, Tensor]]
    ) -> None:
        """Names the layer; stops, or leaves the step out with the buffers as before it. Collective."""

        def restore() -> None:
            for buffer, before in buffers:
                buffer.copy_(before)

        def forward() -> None:
            for index, part in enumerate(parts):
                self._losses(index, part)

        restore()
        found = gather_findings(first_nonfinite_layer(self.executor.module, forward))
        restore()
        words = (
            f"step {self.step}: loss {row['loss']:.4g}, gradient norm {row['grad_norm']:.4g}: "
            f"not finite, {found}"
        )
        self.skipped_in_a_row += 1
        limit = self.config.nonfinite_limit
        if self.config.nonfinite == "stop":
            raise NonFiniteError(
                f"{words}\n  to do: {go_on_words(self.config)}, with nonfinite=skip or a lower optim.lr"
            )
        if self.skipped_in_a_row >= limit:
            raise NonFiniteError(
                f"{words}\n  {limit} such steps in a row\n  "
                f"to do: {go_on_words(self.config)}, with a lower optim.lr"
            )
        self.say(f"{words}; left out, {self.skipped_in_a_row} in a row of at most {limit - 1}")

    def _validate_and_save(self, stopping: bool) -> None:
        """What is due after a step: the validation first, so that a resume never skips one."""
        done, best = self.step == self.config.steps, self.best
        if (self.step % self.config.validate_every == 0 or done) and not stopping:
            best = self._validate()
        done = done or self._out_of_patience(best)
        if self.step % self.config.save_every == 0 or done or stopping or best != self.best:
            self._save(best, must_succeed=done or stopping)

    def _validate(self) -> dict[str, float] | None:
        """Scores the held-out images; what is the best then, this step or an earlier one."""
        with torch.no_grad():
            scores = self.objective.score(self.executor.whole())
        if scores is None:
            return self.best
        if self.log:
            self.log.score({"step": self.step, **scores}, self.objective.score_words(scores))
        key = self.objective.best_by
        if self.best is None or math.isnan(self.best[key]) or scores[key] > self.best[key]:
            return {"step": self.step, key: scores[key]}
        return self.best

    def _out_of_patience(self, best: dict[str, float] | None = None) -> bool:
        """Whether so many validations in a row brought no better one."""
        best = best or self.best
        if self.config.patience is None or best is None:
            return False
        return self.step - best["step"] >= self.config.patience * self.config.validate_every

    def _save(self, best: dict[str, float] | None, *, must_succeed: bool) -> None:
        state = {"step": self.step, "best": best, "run": to_mapping(self.config), "about": self._about}
        try:
            save_checkpoint(
                self.checkpoints, self.executor, self.objective, state, self.config.keep_checkpoints
            )
            self.best, self.failed_saves = best, 0
        except SaveError as error:
            self.failed_saves += 1
            if must_succeed or self.failed_saves == FAILED_SAVES:
                words = f"{error}\n  {self.failed_saves} failed in a row" if self.failed_saves > 1 else error
                raise SaveError(f"{words}\n  to do: make room, then {go_on_words(self.config)}") from error
            self.say(f"{error}; training goes on, earlier checkpoints are untouched")


def has_checkpoints(config: RunConfig) -> bool:
    """Whether the run's folder holds one to go on from."""
    return bool(list_checkpoints(Path(config.output) / "checkpoints"))
