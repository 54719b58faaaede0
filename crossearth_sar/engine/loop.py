"""The training loop: from a RunConfig to a trained model, through stops and resumes.

What a step computes depends on (config, step, part) alone: the samples (data/stream.py), the learning rate,
and the random points of the loss, whose generator is seeded anew for every part of every batch
(engine/batch_loss.py). So a resumed run repeats an uninterrupted one.

L layers, E experts.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from crossearth_sar.config import to_mapping, write_yaml
from crossearth_sar.data.domain import (
    Domain,
    open_domain,
    require_held_out,
    require_labels,
    require_same_classes,
)
from crossearth_sar.data.stream import ShardedDraws, TrainStream, join_samples
from crossearth_sar.data.transforms import TrainTransform
from crossearth_sar.engine.batch_loss import part_weights, split_into_parts, weigh, with_global_shares
from crossearth_sar.engine.checkpoint import SaveError, list_checkpoints, load_checkpoint, save_checkpoint
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import (
    Ranks,
    any_rank,
    decided_by_main,
    mean_over_ranks,
    sum_over_ranks,
)
from crossearth_sar.engine.executors.deepspeed.optimizer_state import copy_masters
from crossearth_sar.engine.executors.deepspeed.zero3 import after_engine, before_engine
from crossearth_sar.engine.log import CsvLog, TensorBoard
from crossearth_sar.engine.nonfinite import NonFiniteError, first_nonfinite_layer, gather_findings
from crossearth_sar.engine.optim import learning_rate, make_optimizer
from crossearth_sar.engine.planning.layout import (
    check_machine,
    deepspeed_config,
    plan_layout,
    run_model_config,
)
from crossearth_sar.engine.resume import best_of, find_checkpoint, go_on_words
from crossearth_sar.engine.stopping import StopRequest, leave_stopping_to_training
from crossearth_sar.engine.throughput import Meter, balance_columns, peak_tflops
from crossearth_sar.evaluation.evaluate import Evaluation, evaluate
from crossearth_sar.model import CrossEarthSAR, LossTerms
from crossearth_sar.pretrained import load_backbone, named_weights

FAILED_SAVES = 3
"""In a row end a run: what goes on unsaved for longer is lost at the next fault."""


class Trainer:
    """One run on this rank. Building it checks all that can be known before training; `fit` trains.

    Args:
        config: the run.
        ranks: this process among the others.

    Raises:
        InputError: for data, sizes or a layout of ranks that cannot work.
    """

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.output = Path(config.output)
        self.layout = plan_layout(
            config,
            run_model_config(config, num_classes=1),
            ranks=ranks.size,
            on_gpu=ranks.device.type == "cuda",
        )
        check_machine(config)
        if not list_checkpoints(self.checkpoints):  # a run that goes on has its own weights
            named_weights(config.weights)
        self.micro_batch, self.ep_size = self.layout.micro_batch, self.layout.ep_size
        self.train_domain = open_domain(config.train, config.data_root)
        self.validation = open_domain(config.validation, config.data_root)
        self.unseen = [open_domain(domain, config.data_root) for domain in config.unseen]
        others = [self.validation, *self.unseen]
        require_same_classes([self.train_domain, *others])
        require_held_out(self.train_domain, others)
        require_labels(self.train_domain)
        self.classes = self.train_domain.classes
        self.model_config = run_model_config(config, num_classes=len(self.classes))
        self.step, self.skipped_in_a_row, self.failed_saves = 0, 0, 0
        self.best: dict[str, float] | None = None

    @property
    def checkpoints(self) -> Path:
        return self.output / "checkpoints"

    def start(self, resume: str | None = None) -> None:
        """Builds model and DeepSpeed engine; with `resume`, "auto" or a checkpoint's path, restores them.

        "auto" takes the newest complete checkpoint of the output folder, or none if there is none.
        """
        checkpoint = decided_by_main(lambda: find_checkpoint(self.config, resume, self.say), self.ranks)
        torch.manual_seed(self.config.seed)
        model = CrossEarthSAR(self.model_config)
        model.name_classes(self.classes.names, self.classes.palette)
        weights = named_weights(self.config.weights) if checkpoint is None else None
        if weights is not None:  # of all experts on every rank; the engine's slices are taken of them
            noise = self.config.expert_noise
            load_backbone(model, weights, expert_noise=noise, seed=self.config.seed)
        model.backbone.activation_checkpointing = self.config.parallel.activation_checkpointing
        # Validation runs on a plain copy with all experts: no collective, so ranks may differ in their work,
        # and what is measured is what is saved.
        self.replica = CrossEarthSAR(self.model_config).to(self.ranks.device).eval()
        self.replica.name_classes(self.classes.names, self.classes.palette)
        self.engine = self._build_engine(model)
        if checkpoint is not None:
            state = load_checkpoint(checkpoint, self.engine, self.ranks)
            self.step, self.best = int(state["step"]), best_of(state, checkpoint.parent)
            self.say(f"resumed from {checkpoint}: {self.step} of {self.config.steps} steps are done")
        peak = peak_tflops(self.ranks.device)
        self.meter = Meter(self.model_config, self.config.batch_size, peak and peak * self.ranks.size)
        if self.ranks.is_main:
            self.output.mkdir(parents=True, exist_ok=True)
            write_yaml(self.config, self.output / "config.yaml")
            self.train_log = CsvLog(self.output / "train.csv", resume_step=self.step)
            self.validation_log = CsvLog(
                self.output / "validation.csv", resume_step=self.step + 1 if self.step else 0
            )
            self.tensorboard = TensorBoard(self.output / "tensorboard", resume_step=self.step)
            if self.tensorboard.note:
                self.say(self.tensorboard.note)

    def fit(self) -> bool:
        """Trains to the end. False when a signal stopped it; what was done is saved then.

        Raises:
            NonFiniteError: on all ranks, for NaN or infinity, as config.nonfinite says.
            SaveError: on all ranks, when the last save or that after a signal fails, or FAILED_SAVES in a
                row; otherwise it is reported, and training goes on.
        """
        config, stop = self.config, StopRequest()
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            disable=not self.ranks.is_main,
            unit="step",
            mininterval=1.0 if sys.stderr.isatty() else 15.0,
            dynamic_ncols=True,
        )
        try:
            for batch in self.meter.timed(self._batches()):
                row = self._train_step(batch)
                self._log_step({**row, **self.meter.row()}, bar)
                self.step += 1
                stopping = any_rank(stop.received is not None, self.ranks.device)
                done = self.step == config.steps
                due, best = self.step % config.save_every == 0 or done or stopping, self.best
                if (self.step % config.validate_every == 0 or done) and not stopping:
                    best = self._validate(bar)  # before the save, so that a resume never skips a validation
                if due or best != self.best:
                    self._save(best, must_succeed=done or stopping)
                if stopping:
                    break
        finally:
            bar.close()
            stop.restore()
            if self.ranks.is_main:
                self.tensorboard.close()  # whatever ends the run: its last events reach the disk
        if self.step < config.steps:
            self.say(
                f"stopped by {stop.received or 'a signal to another rank'} after step {self.step} of "
                f"{config.steps}; it is saved. Go on with the same command and --resume"
            )
            return False
        return True

    def evaluate(self, domain: Domain, max_samples: int | None = None) -> Evaluation:
        """The current masters on up to `max_samples` evenly spaced samples; a collective call."""
        copy_masters(self.engine, self.replica)
        count = min(len(domain), max_samples or len(domain))
        chosen = [i * len(domain) // count for i in range(count)]
        result = evaluate(self.replica, domain, chosen[self.ranks.rank :: self.ranks.size])
        result.confusion.counts.copy_(sum_over_ranks(result.confusion.counts))
        result.tokens_LE = sum_over_ranks(result.tokens_LE)
        return result

    def _build_engine(self, model: CrossEarthSAR) -> Any:
        import deepspeed

        from crossearth_sar.engine.executors.deepspeed.experts import shard_experts

        stage = self.config.parallel.zero_stage
        shard_experts(model, self.ep_size)
        if stage == 3:
            before_engine(model)
        optimizer = make_optimizer(model, self.config.optim)
        settings = deepspeed_config(self.config, self.layout)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        if stage == 3:
            after_engine(model)
        if stage in (1, 2):
            # In fp32 DeepSpeed looks at the norm alone, where a rank's expert with a NaN can average away.
            engine.optimizer.check_grad_overflow = True
        return engine

    def _batches(self) -> Iterator[dict[str, Any]]:
        stream = TrainStream(self.train_domain, TrainTransform(self.config.augment), self.config.seed)
        draws = ShardedDraws(
            first_step=self.step,
            last_step=self.config.steps,
            rank=self.ranks.rank,
            batch_size=self.config.batch_size,
            ranks=self.ranks.size,
        )
        workers = self.config.workers
        yield from DataLoader(
            stream,
            batch_sampler=draws,
            collate_fn=join_samples,
            num_workers=workers,
            prefetch_factor=self.config.prefetch if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self.ranks.device.type == "cuda",
            worker_init_fn=leave_stopping_to_training,
        )

    def _train_step(self, batch: dict[str, Any]) -> dict[str, float]:
        config, engine = self.config, self.engine
        rate = learning_rate(config.optim, self.step, config.steps)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        engine.train()
        buffers = [(buffer, buffer.clone()) for buffer in engine.module.buffers()]
        parts = split_into_parts(batch, _BATCH_KEYS, config.accumulation)
        weights = part_weights([part["mask"] for part in parts], self.model_config.decoder, self.ranks)
        values, norm, applied = [], math.nan, True
        for index in range(config.accumulation):
            terms, share_LE = self._forward(index, parts[index], weights[index])
            engine.backward(terms.total)
            if config.parallel.zero_stage == 0:  # the engine neither keeps a norm then nor looks at it
                norm = _gradient_norm(engine.module)
                applied = math.isfinite(norm) or index < config.accumulation - 1
            with contextlib.nullcontext() if applied else _no_update(engine.optimizer):
                engine.step()
            values.append(torch.cat([_loss_row(terms), share_LE.flatten()]))
        mean = mean_over_ranks(torch.stack(values).mean(0)).cpu()
        row: dict[str, float] = {"step": self.step, **dict(zip(_LOSS_COLUMNS, mean.tolist(), strict=False))}
        row.update(balance_columns(mean[len(_LOSS_COLUMNS) :].view(share_LE.shape), self.ep_size))
        row["lr"] = rate
        row["grad_norm"] = norm if config.parallel.zero_stage == 0 else float(engine.get_global_grad_norm())
        applied = applied and not getattr(engine.optimizer, "overflow", False)
        row["skipped"] = float(not applied)
        if not applied or not math.isfinite(row["loss"]):
            self._meet_nonfinite(row, parts, buffers)
        else:
            self.skipped_in_a_row = 0
        return row

    def _forward(
        self, index: int, part: dict[str, Any], weights: tuple[float, float]
    ) -> tuple[LossTerms, Tensor]:
        """The loss terms of this rank's part `index`, and the (L, E) shares of its tokens."""
        parts = self.ranks.size * self.config.accumulation
        number = self.ranks.rank + self.ranks.size * index
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * parts + number)
        there = {key: value.to(self.ranks.device, non_blocking=True) for key, value in part.items()}
        output = self.engine(there["image"], there["db_mean"], there["db_std"])
        shares = [routing.expert_fraction for routing in output.routing]
        if self.config.parallel.balance == "global":
            output = with_global_shares(output, self.ranks)
        terms = weigh(self.engine.module.loss(output, there["mask"]), *weights)
        return terms, torch.stack(shares).float() if shares else terms.total.new_zeros(0, 0)

    def _meet_nonfinite(
        self, row: dict[str, float], parts: list[dict[str, Any]], buffers: list[tuple[Tensor, Tensor]]
    ) -> None:
        """Names the layer; stops, or leaves the step out with the buffers as before it. Collective."""

        def restore() -> None:
            for buffer, before in buffers:
                buffer.copy_(before)

        def forward() -> None:
            for index, part in enumerate(parts):
                self._forward(index, part, (1.0, 1.0))

        restore()
        found = gather_findings(first_nonfinite_layer(self.engine.module, forward))
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

    def _log_step(self, row: dict[str, float], bar: Any) -> None:
        if not self.ranks.is_main:
            return
        self.train_log.append(row)
        self.tensorboard.scalars("train", row, self.step)
        bar.set_postfix(
            loss=f"{row['loss']:.2f}",
            lr=f"{row['lr']:.1e}",
            img_s=f"{row['images_per_second']:.1f}",
            wait=f"{row['data_wait']:.0%}",
            refresh=False,
        )
        bar.update()

    def _validate(self, bar: Any) -> dict[str, float] | None:
        """Scores the held-out images; what is the best then, this step or an earlier one."""
        result = self.evaluate(self.validation, self.config.validation_samples)
        scores = result.confusion.scores()
        row = {
            "step": self.step,
            "miou": scores.miou,
            "pixel_accuracy": scores.pixel_accuracy,
            **{f"iou_{name}": float(iou) for name, iou in zip(self.classes.names, scores.iou, strict=True)},
        }
        if self.ranks.is_main:
            self.validation_log.append(row)
            self.tensorboard.scalars("validation", row, self.step)
            bar.write(f"step {self.step}: mIoU {scores.miou:.3f} on {self.validation.name}", file=sys.stderr)
        if self.best is None or scores.miou > self.best["miou"]:
            return {"step": self.step, "miou": scores.miou}
        return self.best

    def _save(self, best: dict[str, float] | None, *, must_succeed: bool) -> None:
        layout = {"ep_size": self.ep_size, "zero_stage": self.config.parallel.zero_stage}
        state = {"step": self.step, "best": best, **layout, "run": to_mapping(self.config)}
        try:
            save_checkpoint(self.checkpoints, self.engine, self.ranks, state, self.config.keep_checkpoints)
            self.best, self.failed_saves = best, 0
        except SaveError as error:
            self.failed_saves += 1
            if must_succeed or self.failed_saves == FAILED_SAVES:
                words = f"{error}\n  {self.failed_saves} failed in a row" if self.failed_saves > 1 else error
                raise SaveError(f"{words}\n  to do: make room, then {go_on_words(self.config)}") from error
            self.say(f"{error}; training goes on, earlier checkpoints are untouched")

    def say(self, text: str) -> None:
        """One line to the user, from rank 0."""
        if self.ranks.is_main:
            print(text, file=sys.stderr, flush=True)


_BATCH_KEYS = ("image", "mask", "db_mean", "db_std")
_LOSS_COLUMNS = ("loss", "loss_segmentation", "loss_balance", "loss_class", "loss_mask", "loss_dice")


def _loss_row(terms: LossTerms) -> Tensor:
    parts = terms.parts
    values = (
        terms.total,
        terms.segmentation,
        terms.balance,
        parts["class"],
        parts["mask"],
        parts["dice"],
    )
    return torch.stack([value.detach().float() for value in values])


@contextlib.contextmanager
def _no_update(optimizer: Any) -> Iterator[None]:
    """The engine's step in here ends as it should, but for the weights and moments, which stay."""
    optimizer.step = lambda: None
    try:
        yield
    finally:
        del optimizer.step  # the class's own is seen again


def _gradient_norm(model: CrossEarthSAR) -> float:
    """Of whole gradients, each rank's equal."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))
