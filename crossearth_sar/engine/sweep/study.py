"""The trials of a sweep, kept by optuna in a file of the sweep's folder: which comes next, what came of each.

The file is SQLite's, which a kill at any moment leaves readable. What trial n draws is a function of the
seed, n and the scores before it, so that a sweep that was stopped repeats one that was not.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crossearth_sar.config import to_mapping
from crossearth_sar.engine.config import RunConfig
from crossearth_sar.engine.resume import PLACES
from crossearth_sar.engine.sweep.settings import SweepConfig, is_integer
from crossearth_sar.errors import InputError

STUDY_FILE = "study.db"


@dataclass(frozen=True)
class Trial:
    """number: from 0. values: setting -> what it is. score: of the model that the run left; None where it has
    none, as `failure` says, or is not over. facts: step of that model, seconds that the trial took."""

    number: int
    values: Mapping[str, Any]
    score: float | None = None
    failure: str | None = None
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Its name below the sweep's."""
        return f"trial-{self.number:04d}"

    @property
    def words(self) -> str:
        """Its settings as --set takes them, for a shell."""
        return shlex.join(f"{key}={json.dumps(value)}" for key, value in self.values.items())


class Study:
    """The sweep of `base` in its folder, begun or gone on with.

    Raises:
        InputError: optuna is not installed, or the folder's sweep is another one.
    """

    def __init__(self, sweep: SweepConfig, base: RunConfig) -> None:
        self.sweep, self.optuna = sweep, _optuna()
        self._space = {key: self._distribution(key) for key in sweep.vary}
        path = Path(base.output).absolute() / STUDY_FILE
        self._study = self.optuna.create_study(
            storage=f"sqlite:///{path}", study_name="sweep", direction="maximize", load_if_exists=True
        )
        self._require_same(base, path)

    def next(self) -> Trial | None:
        """The trial to run: one that was broken off, else a new one; None when all are done."""
        states, waiting = self.optuna.trial.TrialState, []
        for frozen in self._study.get_trials(deepcopy=False):
            if not frozen.state.is_finished() and set(frozen.params) == set(self._space):
                waiting.append(frozen)
            elif not frozen.state.is_finished():  # killed while it was drawn
                self._study.tell(frozen.number, state=states.FAIL)
        if waiting:
            return Trial(waiting[0].number, self._values(waiting[0].params))
        if len(self.finished()) >= self.sweep.trials:
            return None
        number = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = self.optuna.samplers.TPESampler(seed=self.sweep.seed * 1_000_003 + number)
        asked = self._study.ask(self._space)
        return Trial(asked.number, self._values(asked.params))

    def tell(self, trial: Trial) -> None:
        """Keeps what came of a trial: its score and facts, or its failure."""
        states = self.optuna.trial.TrialState
        self._study.set_user_attr(trial.folder, {"failure": trial.failure, "facts": dict(trial.facts)})
        state = states.FAIL if trial.score is None else states.COMPLETE
        self._study.tell(trial.number, trial.score, state=state)

    def finished(self) -> list[Trial]:
        """Those that ran to an end, good or bad, in their order."""
        kept, found = self._study.user_attrs, []
        for frozen in self._study.get_trials(deepcopy=False):
            trial = Trial(frozen.number, frozen.params)
            if frozen.state.is_finished() and trial.folder in kept:
                values = self._values(frozen.params)
                found.append(replace(trial, values=values, score=frozen.value, **kept[trial.folder]))
        return found

    def best(self) -> Trial | None:
        """The first of the highest score."""
        scored = [trial for trial in self.finished() if trial.score is not None]
        return max(scored, key=lambda trial: trial.score or 0.0, default=None)

    def _distribution(self, key: str) -> Any:
        """Values are kept as JSON: optuna knows numbers and text alone."""
        vary, kinds = self.sweep.vary[key], self.optuna.distributions
        if vary.low is None or vary.high is None:
            return kinds.CategoricalDistribution([json.dumps(value) for value in vary.values])
        if is_integer(key, vary):
            return kinds.IntDistribution(int(vary.low), int(vary.high), log=vary.log)
        return kinds.FloatDistribution(vary.low, vary.high, log=vary.log)

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        listed = {key for key, vary in self.sweep.vary.items() if vary.values}
        return {key: json.loads(params[key]) if key in listed else params[key] for key in self.sweep.vary}

    def _require_same(self, base: RunConfig, path: Path) -> None:
        """InputError where the file was made by another sweep; only `trials` may differ."""
        now = {"sweep": to_mapping(self.sweep), "run": to_mapping(base)}
        del now["sweep"]["trials"]
        for place in PLACES:
            del now["run"][place]
        now = json.loads(json.dumps(now))
        before = self._study.user_attrs or now
        different = [
            key if part == "run" else f"the sweep's {key}"
            for part in now
            for key in now[part]
            if before[part].get(key) != now[part][key]
        ]
        if different:
            raise InputError(
                f"{path} is of another sweep",
                got=f"another {', '.join(different)}",
                expected="the same run and the same sweep; more trials are welcome",
                fix="--set output=runs/another-sweep",
            )
        for part, value in now.items():
            self._study.set_user_attr(part, value)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            "a sweep needs optuna", got="it is not installed", fix="pip install 'crossearth-sar[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
