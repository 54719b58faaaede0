"""A replaced model in other people's trainers, on two ranks: losses and weights are those of one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ranks import shared_pool
from test_data_parallel import STEPS, halves, loss_of, replaced, train_alone
from torch import Tensor, nn

BALANCE, RATE = 0.1, 0.05


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Every step's halves, image by image, in order: with two images a batch, ranks take turns at them."""

    def __len__(self) -> int:
        return 4 * STEPS

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        pixels, physics = halves(number // 4)[number % 4 // 2]
        return {"pixel_values": pixels[number % 2], "physics": physics[number % 2]}


def join() -> int:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    return torch.distributed.get_rank()


def apart(model: nn.Module) -> float:
    """How far these weights are from those of one process."""
    alone = train_alone(BALANCE)[1]
    return max(float((p - a).abs().max()) for p, a in zip(model.parameters(), alone, strict=True))


def in_accelerate() -> tuple[list[float], float]:
    from accelerate import Accelerator

    rank, (model, moe), losses = join(), replaced(), []
    accelerator = Accelerator(cpu=True)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=RATE)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(wrapped, moe, halves(step)[rank], BALANCE)
        accelerator.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, apart(model)


def in_transformers(folder: str) -> tuple[list[float], float]:
    from transformers import Trainer, TrainingArguments

    join()
    model, moe = replaced()

    class Balanced(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            return loss_of(model, moe, (inputs["pixel_values"], inputs["physics"]), BALANCE)

        def _get_train_sampler(self, *_: Any) -> Any:  # the rows in order
            return torch.utils.data.SequentialSampler(Rows())

    arguments = TrainingArguments(
        output_dir=folder, max_steps=STEPS, per_device_train_batch_size=2, save_strategy="no", report_to=[],
        use_cpu=True, disable_tqdm=True, remove_unused_columns=False, logging_steps=1, max_grad_norm=0,
        ddp_backend="gloo", ddp_find_unused_parameters=False,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    trainer = Balanced(model, arguments, train_dataset=Rows(), optimizers=(optimizer, constant))
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return losses, apart(model)


def in_lightning(folder: str) -> tuple[list[float], float]:
    import lightning

    rank = join()
    inner, moe = replaced()
    losses: list[float] = []

    class Task(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = inner

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            loss = loss_of(self.model, moe, (batch["pixel_values"], batch["physics"]), BALANCE)
            losses.append(float(loss.detach()))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=RATE)

    mine = [Rows()[number] for number in range(4 * STEPS) if number % 4 // 2 == rank]
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(Task(), torch.utils.data.DataLoader(mine, batch_size=2))
    return losses, apart(inner)


def means(ranks: list[tuple[list[float], float]]) -> Iterator[float]:
    for losses in zip(*(losses for losses, _ in ranks), strict=True):
        yield sum(losses) / len(ranks)


def require_one_process(ranks: list[tuple[list[float], float]], tolerance: float = 1e-6) -> None:
    assert list(means(ranks)) == pytest.approx(train_alone(BALANCE)[0], rel=tolerance)
    assert all(distance < 1e-5 for _, distance in ranks)


def test_accelerate() -> None:
    require_one_process(shared_pool(2)(in_accelerate))


def test_the_trainer_of_transformers(tmp_path: Any) -> None:
    require_one_process(shared_pool(2)(in_transformers, str(tmp_path)))


def test_lightning(tmp_path: Any) -> None:
    pytest.importorskip("lightning", reason="pip install lightning")
    require_one_process(shared_pool(2)(in_lightning, str(tmp_path)))
