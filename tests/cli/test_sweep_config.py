"""Which points a command line or a study's file asks for, against lists written out by hand."""

from pathlib import Path

import pytest

from cli.sweep_request import Sweep, read_configs, read_sweep
from nanogpt.config import TrainConfig
from nanogpt.errors import BadInput

LR, DROPOUT = "optimizer.lr=1e-3,3e-4", "model.dropout=0,0.1"


def read_words(*words: str) -> Sweep[TrainConfig]:
    return read_sweep("train", TrainConfig, list(words), multirun=True)


def values(*words: str) -> list[tuple[float, float, int]]:
    configs = [point.config for point in read_words(*words).points]
    return [(one.optimizer.lr, one.model.dropout, one.training.batch_tokens) for one in configs]


def test_a_grid_is_every_combination_in_the_order_given() -> None:
    assert values(LR, DROPOUT) == [(1e-3, 0, 1536), (1e-3, 0.1, 1536), (3e-4, 0, 1536), (3e-4, 0.1, 1536)]


def test_zipped_keys_go_in_pairs() -> None:
    batches = "training.batch_tokens=64,128"
    assert values(LR, batches, "sweep.zip=[optimizer.lr,batch_tokens]") == [(1e-3, 0, 64), (3e-4, 0, 128)]
    made = read_words(LR, batches, DROPOUT, "sweep.zip=[lr,batch_tokens]")
    assert len(made.points) == 4 and list(made.points[0].changes) == [
        "optimizer.lr",
        "training.batch_tokens",
        "model.dropout",
    ]
    words = [LR, batches, DROPOUT, "training.seed=1,2", "sweep.zip=[[lr,batch_tokens],[seed,dropout]]"]
    pairs = [(p.config.optimizer.lr, p.config.training.seed, p.config.model.dropout) for p in read_words(*words).points]
    assert pairs == [(1e-3, 1, 0), (1e-3, 2, 0.1), (3e-4, 1, 0), (3e-4, 2, 0.1)]


def test_a_list_of_points_times_a_grid() -> None:
    listed = "sweep.points=[{optimizer.lr:1e-3,model.dropout:0.2},{optimizer.lr:1e-4}]"
    assert values(listed) == [(1e-3, 0.2, 1536), (1e-4, 0, 1536)]
    made = read_words(listed, "training.seed=1,2")
    assert [(p.config.optimizer.lr, p.config.training.seed) for p in made.points] == [
        (1e-3, 1), (1e-4, 1), (1e-3, 2), (1e-4, 2),
    ]  # fmt: skip
    groups = read_words("sweep.points=[{model:tiny,optimizer.lr:1e-3},{model:gpt2,optimizer.lr:1e-4}]")
    assert [(p.config.model.n_layer, p.config.optimizer.lr) for p in groups.points] == [(4, 1e-3), (12, 1e-4)]


def test_a_single_value_may_be_nothing() -> None:
    made = read_words("sweep.grid={training.seed:0,model.dropout:0.0,model.bias:false}")
    assert len(made.points) == 1 and made.points[0].config.training.seed == 0


def test_what_is_left_out() -> None:
    made = read_words(LR, DROPOUT, "sweep.exclude=['optimizer.lr>=1e-3 model.dropout=0.1']")
    assert [(p.config.optimizer.lr, p.config.model.dropout) for p in made.points] == [(1e-3, 0), (3e-4, 0), (3e-4, 0.1)]
    assert made.excluded == 1
    assert len(read_words("model=tiny,baby", LR, "sweep.exclude=['model=baby optimizer.lr!=1e-3']").points) == 3
    assert len(read_words(LR, DROPOUT, "sweep.exclude=['optimizer.lr<1e-3','model.dropout>0']").points) == 1
    assert len(read_words("model.n_kv_head=null,2", LR, "sweep.exclude=['model.n_kv_head=null']").points) == 2


def test_files_that_nobody_named_can_be_left_out_by() -> None:
    """A group's file that an experiment or a default chose."""
    made = read_words("experiment=lr_dropout", "sweep.exclude=['model=tiny model.dropout=0.0']")
    assert len(made.points) == 24 and made.excluded == 12
    assert len(read_words(LR, "sweep.exclude=['schedule=cosine optimizer.lr=1e-3']").points) == 1


def test_a_point_that_cannot_be_may_be_left_out() -> None:
    words = ["model.n_embd=128,130", "model.n_head=4,5"]
    with pytest.raises(BadInput, match=r"in point 2 of 4: model.n_embd=128 model.n_head=5"):
        read_words(*words)
    left = read_words(*words, "sweep.exclude=['model.n_embd=128 model.n_head=5','model.n_embd=130 model.n_head=4']")
    assert [(p.config.model.n_embd, p.config.model.n_head) for p in left.points] == [(128, 4), (130, 5)]


FILE = """# @package _global_
defaults:
  - override /model: baby
name: mine
sweep:
  grid:
    optimizer.lr: [1e-3, 3e-4]
    model.dropout: 0,0.1
    training.seed: range(1,3)
  exclude: [model.dropout=0 optimizer.lr=3e-4]
"""


def test_a_study_is_a_file(experiment: Path) -> None:
    experiment.write_text(FILE)
    made = read_words("experiment=mine")
    assert len(made.points) == 6 and made.excluded == 2
    assert {p.config.model.name for p in made.points} == {"baby"} and made.points[0].config.name == "mine"
    assert [p.config.training.seed for p in made.points] == [1, 2] * 3


def test_the_command_line_wins_over_the_file(experiment: Path) -> None:
    experiment.write_text(FILE)
    made = read_words("experiment=mine", "optimizer.lr=5e-3", "training.seed=7,8,9")
    assert {p.config.optimizer.lr for p in made.points} == {5e-3} and len(made.points) == 6
    assert sorted({p.config.training.seed for p in made.points}) == [7, 8, 9]
    assert len(read_words("experiment=mine", "sweep.exclude=[]").points) == 8


def test_a_file_that_is_not_global_or_names_others_wrongly(experiment: Path) -> None:
    experiment.write_text("name: mine\n")
    with pytest.raises(BadInput, match="must begin with the line # @package _global_"):
        read_words("experiment=mine")
    experiment.write_text("# @package _global_\ndefaults:\n  - data: text\nname: mine\n")
    with pytest.raises(BadInput, match="of another group's file write"):
        read_words("experiment=mine")


def test_a_study_needs_m(experiment: Path) -> None:
    experiment.write_text(FILE)
    one = read_sweep("train", TrainConfig, ["experiment=mine"])
    assert len(one.points) == 1
    with pytest.raises(BadInput, match=r"experiment=mine: is a study of several runs; add -m"):
        one.check_multirun()
    for word in ("sweep.retry=failed", "hydra/sweeper=halving"):
        with pytest.raises(BadInput, match=f"{word.split('=')[0]}: is for sweeps; add -m"):
            read_sweep("train", TrainConfig, [word]).check_multirun()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("optimizer.lrr: [1, 2]", "optimizer.lrr: no such key or group; did you mean 'optimizer.lr'"),
        ("optimizer.lr: []", "sweep.grid={'optimizer.lr': []}: not possible; allowed: {key: [value, value]}"),
        ("model: [tiny, bigg]", "model=bigg: no such choice; allowed: one of"),
        ("optimizer.lr: [1e-3, abc]", "optimizer.lr=abc: a number is needed"),
        ("optimizer: {lr: [1e-3]}", "sweep.grid="),
        ("hydra.launcher.partition: [a, b]", "is the same for all points"),
    ],
)
def test_wrong_lines_of_a_study(experiment: Path, line: str, message: str) -> None:
    experiment.write_text(f"# @package _global_\nname: mine\nsweep:\n  grid:\n    {line}\n")
    with pytest.raises(BadInput) as refused:
        read_words("experiment=mine")
    assert message in str(refused.value)


REFUSED = [
    (["sweep.zip=[optimizer.lr,model.dropout]"], "sweep.zip: optimizer.lr isn't swept; give it a list of values"),
    (
        [LR, "model.dropout=0,0.1,0.2", "sweep.zip=[lr,dropout]"],
        "lr has 2, model.dropout has 3 values; zipped",
    ),
    ([LR, DROPOUT, "sweep.zip=[lr,lr]"], "optimizer.lr is in it twice"),
    ([LR, DROPOUT, "sweep.zip=[lr]"], "sweep.zip"),
    ([LR, DROPOUT, "training.seed=1,2", "sweep.zip=[[lr,seed],[dropout,lr]]"], "optimizer.lr is in it twice"),
    (
        [LR, "sweep.exclude=['optimizer.lr=1e-3,2e-3']"],
        "optimizer.lr=1e-3,2e-3: can compare with one value only",
    ),
    ([LR, "sweep.exclude=['optimizer.lr=[']"], "sweep.exclude: optimizer.lr=[: can't be read"),
    (
        ["sweep.points=[{sweep.retry:failed,training.seed:2}]"],
        "sweep.retry is the same for all points and can't be swept",
    ),
    (["sweep.grid={hydra.sweeper.eta:[2]}"], "hydra.sweeper.eta is the same for all points and can't be swept"),
    ([LR, DROPOUT, "sweep.zip=[lr,dropuot]"], "did you mean"),
    ([LR, DROPOUT, "sweep.zip=3"], "sweep.zip=3"),
    ([LR, "sweep.zipp=[lr]"], "sweep.zipp: no such key or group; did you mean 'sweep.zip'"),
    ([LR, "sweep.exclude=['optimizer.lrr=1']"], "no such key; did you mean 'optimizer.lr'"),
    ([LR, "sweep.exclude=['optimizer.lr']"], "sweep.exclude"),
    ([LR, "sweep.exclude=['optimizer.lr>0']"], "sweep.exclude: excludes all 2 points"),
    ([LR, "sweep.exclude=['model.name>3']"], "model.name is tiny; > compares numbers"),
    ([LR, "sweep.points=[{optimizer.lr:1}]"], "optimizer.lr is in the points and given outside of them too"),
    (["sweep.points=[{optimizer.lrr:1}]"], "optimizer.lrr: no such key or group; did you mean 'optimizer.lr'"),
    (["sweep.points=[{}]"], "sweep.points"),
    (["sweep.points=[1,2]"], "sweep.points=1: keys with values are needed; allowed: a list of {key: value}"),
    (["sweep.retry=faild"], "sweep.retry=faild: not a choice; allowed: one of failed or null; did you mean 'failed'"),
    (["sweep.gpu=h10"], "did you mean 'h100'"),
    (["sweep.retry=failed,null"], "is the same for all points and can't be swept"),
    (["hydra/sweeper=halvign"], "did you mean 'halving'"),
    (["hydra.sweeper.eta=2"], "hydra.sweeper.eta: choose hydra/sweeper=halving"),
    (
        ["hydra/sweeper=halving", "hydra.sweeper.eta=1"],
        "eta=1: out of range; allowed: integer in [2, 100]",
    ),
    (["hydra/sweeper=halving", "hydra.sweeper.etta=2"], "did you mean 'hydra.sweeper.eta'"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(case[0])[:60] for case in REFUSED])
def test_refused(words: list[str], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        read_words(*words)
    assert message in str(refused.value)


def test_other_doors_know_no_sweeps() -> None:
    from nanogpt.config import SampleConfig

    with pytest.raises(BadInput, match=r"sweep.retry: no such key or group"):
        read_configs("sample", SampleConfig, ["sweep.retry=failed"], multirun=True)


@pytest.mark.parametrize("order", ["lr_dropout,isoflop_cpu", "isoflop_cpu,lr_dropout"])
def test_studies_with_different_sweep_sections_are_refused(order: str) -> None:
    with pytest.raises(BadInput, match="these have sweep sections that differ; sweep one of them at a time"):
        read_words(f"experiment={order}")
