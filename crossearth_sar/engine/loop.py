"""The training loop: from a RunConfig to a trained model, through stops and resumes.

What a step computes depends on (config, step, rank) alone: the samples (data/stream.py), the learning rate,
and the random points of the loss, whose generator is seeded anew every step. So a resumed run repeats an
uninterrupted one.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from crossearth_sar.config import merge, to_mapping, write_yaml
from crossearth_sar.data.domain import Domain, open_domain
from crossearth_sar.data.stream import ShardedDraws, TrainStream
from crossearth_sar.data.transforms import TrainTransform
from crossearth_sar.engine.checkpoint import list_checkpoints, load_checkpoint, read_state, save_checkpoint
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.distributed import Ranks, any_rank, choose_ep_size, mean_over_ranks, sum_over_ranks
from crossearth_sar.engine.log import CsvLog, TensorBoard
from crossearth_sar.engine.optim import learning_rate, make_optimizer
from crossearth_sar.errors import InputError
from crossearth_sar.evaluation.evaluate import Evaluation, evaluate
from crossearth_sar.model import CrossEarthSAR, LossTerms
from crossearth_sar.moe.expert_parallel import full_state_dict
from crossearth_sar.presets import ModelConfig, model_preset


class StopRequest:
    """Remembers Ctrl-C or a termination signal, so that the step in progress ends and is saved."""

    def __init__(self) -> None:
        self.received: str | None = None
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._remember) for number in numbers}

    def restore(self) -> None:
        """Lets the signals end the process again, as they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name


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
        self.micro_batch = _micro_batch(config, ranks)
        self.model_config = _model_config(config, num_classes=1)
        _check_crop(config, self.model_config)
        self.ep_size = _ep_size(config, self.model_config, ranks)
        self.train_domain = open_domain(config.train, config.data_root)
        self.validation = open_domain(config.validation, config.data_root)
        self.unseen = [open_domain(domain, config.data_root) for domain in config.unseen]
        _check_same_classes([self.train_domain, self.validation, *self.unseen])
        self.classes = self.train_domain.classes
        self.model_config = _model_config(config, num_classes=len(self.classes))
        self.step = 0

    def start(self, resume: str | None = None) -> None:
        """Builds model and DeepSpeed engine; with `resume`, "auto" or a checkpoint's path, restores them.

        "auto" takes the newest complete checkpoint of the output folder, or none if there is none.
        """
        torch.manual_seed(self.config.seed)
        model = CrossEarthSAR(self.model_config)
        # Validation runs on a plain copy with all experts: no collective, so ranks may differ in their work,
        # and what is measured is what is saved.
        self.replica = CrossEarthSAR(self.model_config).to(self.ranks.device).eval()
        self.engine = _deepspeed_engine(model, self.config, self.ranks, self.ep_size, self.micro_batch)
        checkpoint = self._find_checkpoint(resume)
        if checkpoint is not None:
            self.step = int(load_checkpoint(checkpoint, self.engine, self.ranks, self._layout())["step"])
            self.say(f"resumed from {checkpoint}: {self.step} of {self.config.steps} steps are done")
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
        """Trains to the end. False when a signal stopped it; what was done is saved then."""
        config, stop = self.config, StopRequest()
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            disable=not self.ranks.is_main,
            unit="step",
            mininterval=1.0 if sys.stderr.isatty() else 15.0,
            dynamic_ncols=True,
        )
        for batch in self._batches():
            started = time.perf_counter()
            row = self._train_step(batch)
            row["images_per_second"] = config.batch_size / (time.perf_counter() - started)
            self._log_step(row, bar)
            self.step += 1
            stopping = any_rank(stop.received is not None, self.ranks.device)
            done = self.step == config.steps
            if (self.step % config.validate_every == 0 or done) and not stopping:
                self._validate(bar)  # before the save, so that a resume never skips a validation
            if self.step % config.save_every == 0 or done or stopping:
                self._save()
            if stopping:
                break
        bar.close()
        stop.restore()
        if self.step < config.steps:
            self.say(
                f"stopped by {stop.received or 'a signal to another rank'} after step {self.step} of "
                f"{config.steps}; it is saved. Go on with the same command and --resume"
            )
            return False
        return True

    def evaluate(self, domain: Domain, max_samples: int | None = None) -> Evaluation:
        """The current weights on up to `max_samples` evenly spaced samples; a collective call."""
        self.replica.load_state_dict(full_state_dict(self.engine.module))
        count = min(len(domain), max_samples or len(domain))
        chosen = [i * len(domain) // count for i in range(count)]
        result = evaluate(self.replica, domain, chosen[self.ranks.rank :: self.ranks.size])
        result.confusion.counts.copy_(sum_over_ranks(result.confusion.counts))
        result.tokens_LE = sum_over_ranks(result.tokens_LE)
        return result

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
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.ranks.device.type == "cuda",
            worker_init_fn=_ignore_interrupts,
        )

    def _train_step(self, batch: dict[str, Any]) -> dict[str, float]:
        config, engine, device = self.config, self.engine, self.ranks.device
        torch.manual_seed(_step_seed(config.seed, self.step, self.ranks))
        rate = learning_rate(config.optim, self.step, config.steps)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        engine.train()
        parts = {
            key: batch[key].to(device, non_blocking=True).chunk(config.accumulation)
            for key in ("image", "mask", "db_mean", "db_std")
        }
        rows, norm = [], torch.tensor(math.nan)
        for image, mask, mean, std in zip(*parts.values(), strict=True):
            output = engine(image, mean, std)
            terms: LossTerms = engine.module.loss(output, mask)
            engine.backward(terms.total)
            if config.parallel.zero_stage == 0:  # the engine may keep no norm then
                norm = _gradient_norm(engine.module)
            engine.step()
            fractions = [r.expert_fraction for r in output.routing]
            rows.append(_loss_row(terms, fractions))
        mean_row = mean_over_ranks(torch.stack(rows).mean(0)).tolist()
        row: dict[str, float] = {"step": self.step, **dict(zip(_LOSS_COLUMNS, mean_row, strict=True))}
        row["lr"] = rate
        row["grad_norm"] = float(engine.get_global_grad_norm() or norm)
        return row

    def _log_step(self, row: dict[str, float], bar: Any) -> None:
        if not self.ranks.is_main:
            return
        self.train_log.append(row)
        self.tensorboard.scalars("train", row, self.step)
        bar.set_postfix(loss=f"{row['loss']:.2f}", lr=f"{row['lr']:.1e}", refresh=False)
        bar.update()

    def _validate(self, bar: Any) -> None:
        result = self.evaluate(self.validation, self.config.validation_samples)
        if not self.ranks.is_main:
            return
        scores = result.confusion.scores()
        row = {
            "step": self.step,
            "miou": scores.miou,
            "pixel_accuracy": scores.pixel_accuracy,
            **{f"iou_{name}": float(iou) for name, iou in zip(self.classes.names, scores.iou, strict=True)},
        }
        self.validation_log.append(row)
        self.tensorboard.scalars("validation", row, self.step)
        bar.write(f"step {self.step}: mIoU {scores.miou:.3f} on {self.validation.name}", file=sys.stderr)

    def _save(self) -> None:
        state = {"step": self.step, **self._layout(), "run": to_mapping(self.config)}
        save_checkpoint(
            self.output / "checkpoints", self.engine, self.ranks, state, self.config.keep_checkpoints
        )

    def _layout(self) -> dict[str, Any]:
        return {"ep_size": self.ep_size, "zero_stage": self.config.parallel.zero_stage}

    def _find_checkpoint(self, resume: str | None) -> Path | None:
        existing = list_checkpoints(self.output / "checkpoints")
        if resume is None:
            if existing:
                raise InputError(
                    f"{self.output} holds a run already",
                    got=f"{existing[-1].name}",
                    expected="a new output folder, or --resume",
                    fix="add --resume to go on with it, or --set output=runs/other",
                )
            return None
        if resume != "auto":
            return Path(resume)
        if not existing:
            self.say(f"no complete checkpoint below {self.output}: starting from step 0")
            return None
        self._warn_of_changes(read_state(existing[-1])["run"])
        return existing[-1]

    def _warn_of_changes(self, before: dict[str, Any]) -> None:
        now = to_mapping(self.config)
        changed = [key for key in now if before.get(key) != now[key] and key not in ("output", "data_root")]
        if changed:
            self.say(
                f"note: resumed with another {', '.join(changed)} than before; the run is not a repetition"
            )

    def say(self, text: str) -> None:
        """One line to the user, from rank 0."""
        if self.ranks.is_main:
            print(text, file=sys.stderr, flush=True)


_LOSS_COLUMNS = (
    "loss",
    "loss_segmentation",
    "loss_balance",
    "loss_class",
    "loss_mask",
    "loss_dice",
    "largest_expert_share",
)


def _loss_row(terms: LossTerms, expert_fractions: list[Tensor]) -> Tensor:
    parts = terms.parts
    largest = torch.stack(expert_fractions).max() if expert_fractions else terms.total.new_zeros(())
    values = (
        terms.total,
        terms.segmentation,
        terms.balance,
        parts["class"],
        parts["mask"],
        parts["dice"],
        largest,
    )
    return torch.stack([value.detach().float() for value in values])


def _gradient_norm(model: CrossEarthSAR) -> Tensor:
    """Of whole gradients, each rank's equal."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def _step_seed(seed: int, step: int, ranks: Ranks) -> int:
    return (seed * 1_000_003 + step) * ranks.size + ranks.rank


def _micro_batch(config: RunConfig, ranks: Ranks) -> int:
    parts = ranks.size * config.accumulation
    if config.batch_size % parts:
        nearest_fit = max(parts, config.batch_size // parts * parts)
        raise InputError(
            "batch_size does not divide among ranks",
            got=f"batch_size {config.batch_size} for "
            f"{ranks.size} ranks with accumulation {config.accumulation}",
            expected=f"a multiple of {parts}",
            fix=f"--set batch_size={nearest_fit}",
        )
    return config.batch_size // parts


def _model_config(config: RunConfig, num_classes: int) -> ModelConfig:
    if "num_classes" in config.model:
        raise InputError(
            "model.num_classes is not set by hand",
            got=config.model["num_classes"],
            fix="it is the number of classes of the training domain",
        )
    return merge(model_preset(config.preset, num_classes), config.model, "model")


def _check_crop(config: RunConfig, model: ModelConfig) -> None:
    if config.augment.crop_size != model.crop_size:
        raise InputError(
            "training crop and model crop differ",
            got=f"augment.crop_size {config.augment.crop_size}, model.crop_size {model.crop_size}",
            expected="the same size",
            fix=f"--set augment.crop_size={model.crop_size}",
        )


def _ep_size(config: RunConfig, model: ModelConfig, ranks: Ranks) -> int:
    size = choose_ep_size(config.parallel.ep_size, model.moe.num_experts if model.moe else 1, ranks.size)
    if size > 1 and config.parallel.zero_stage == 0:
        raise InputError(
            "without ZeRO, experts cannot be split among ranks",
            got=f"parallel.zero_stage 0 with parallel.ep_size {config.parallel.ep_size}, here {size}",
            expected="zero_stage 1 or 2: DeepSpeed would clip by a norm that lacks the other ranks' experts",
            fix="--set parallel.zero_stage=1, or parallel.ep_size=1 for all experts on every rank",
        )
    return size


def _check_same_classes(domains: list[Domain]) -> None:
    first = domains[0]
    for other in domains[1:]:
        if other.classes.names != first.classes.names:
            raise InputError(
                f"domain {other.name!r} has other classes than {first.name!r}",
                got=", ".join(other.classes.names),
                expected=", ".join(first.classes.names),
                fix="give every domain the same classes; map what one lacks to ignore",
            )


def _deepspeed_engine(
    model: CrossEarthSAR, config: RunConfig, ranks: Ranks, ep_size: int, micro_batch: int
) -> Any:
    import deepspeed

    from crossearth_sar.engine.deepspeed_moe import shard_experts

    shard_experts(model, ep_size)
    optimizer = make_optimizer(model, config.optim)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(config, ranks, micro_batch)
    )
    return engine


def deepspeed_config(config: RunConfig, ranks: Ranks, micro_batch: int) -> dict[str, Any]:
    """The DeepSpeed json of a run: ZeRO, precision, accumulation and clipping; the rest is ours."""
    on_gpu = ranks.device.type == "cuda"
    use_bf16 = config.precision == "bf16" or (config.precision == "auto" and on_gpu)
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.optim.clip_norm,
        "bf16": {"enabled": use_bf16},
        "zero_optimization": {"stage": config.parallel.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _ignore_interrupts(worker: int) -> None:
    """Loader workers leave Ctrl-C to the training process, which ends its step first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
