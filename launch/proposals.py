"""Points of an asynchronous search that Optuna's samplers choose, one at a time."""

from pathlib import Path

from cli.search_space import Space
from cli.sweep_config import Search
from launch.promotion import Standings
from launch.search import check_optuna_installed, print_trial, suggest_values
from launch.study import PlannedRun
from launch.trials import TrialLog, make_trial
from nanogpt.config import TrainConfig


class Proposals:
    """The trials that were chosen so far, each stored in trials.jsonl before it is trained."""

    def __init__(self, sweeper: Search, space: Space[TrainConfig], path: Path, rungs: int) -> None:
        check_optuna_installed("asha")
        self.sweeper, self.space, self.log, self.rungs = sweeper, space, TrialLog(path), rungs
        self.trials = self.log.read_trials(space)

    def runs(self, number: int, now: Standings, failures: dict[int, str]) -> list[PlannedRun]:
        """Return the runs of a trial, one per seed; choose it by the results so far if it is new.

        A trial that is invalid, excluded, or chosen a second time has none.
        """
        if number == len(self.trials):
            self.update(now, failures)
            texts = suggest_values(self.sweeper, self.space.axes, self.trials, self.log.count, 1)[0]
            self.trials.append(make_trial(self.log.study, self.space, self.log.count + 1, texts))
            self.log.add(self.trials[-1:])
        trial = self.trials[number]
        if twin := next((other for other in self.trials[:number] if trial.runs and other.runs == trial.runs), None):
            trial.state, trial.why, trial.runs = "failed", f"chosen already, as trial {twin.number}", []
        print_trial(trial)
        return trial.runs

    def update(self, now: Standings, failures: dict[int, str]) -> None:
        """Set state and values of every trial, as the sampler sees them."""
        last = self.rungs - 1
        for point, trial in enumerate(self.trials):
            if trial.runs:
                results = enumerate(now.results[: self.rungs])
                trial.by_rung = {rung: values[point] for rung, values in results if point in values}
                trial.val = trial.by_rung.get(last)
                ended = "finished" if last in trial.by_rung else "paused"
                trial.state = "open" if min(now.reached[point], last) not in trial.by_rung else ended
                if point in failures:
                    trial.state, trial.val = "diverged" if failures[point] == "diverged" else "failed", None
