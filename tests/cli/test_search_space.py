"""What a search may choose from, read from command lines and files, against lists written out by hand."""

import pytest

from cli.search_space import Axis
from cli.sweep_config import Search
from cli.sweep_request import Sweep, read_sweep
from nanogpt.config import SampleConfig, TrainConfig
from nanogpt.errors import BadInput

OPTUNA, LR = "hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(1e-4,1e-2))"


def read_words(*words: str) -> Sweep[TrainConfig]:
    return read_sweep("train", TrainConfig, [OPTUNA, *words], multirun=True)


def axes(*words: str) -> list[Axis]:
    space = read_words(*words).space
    assert space is not None
    return list(space.axes)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (LR, Axis("optimizer.lr", "", (), 1e-4, 1e-2, None, True, False)),
        ("model.dropout=interval(0,0.3)", Axis("model.dropout", "", (), 0, 0.3)),
        ("model.n_layer=interval(2,8)", Axis("model.n_layer", "", (), 2, 8, None, False, True)),
        ("model.n_layer=tag(log,interval(1,8))", Axis("model.n_layer", "", (), 1, 8, None, True, True)),
        ("model.n_kv_head=interval(1,1)", Axis("model.n_kv_head", "", (), 1, 1, None, False, True)),
        ("model.n_layer=range(2,9,2)", Axis("model.n_layer", "", (), 2, 8, 2, False, True)),
        ("model.n_layer=range(8,2,-2)", Axis("model.n_layer", "", (), 4, 8, 2, False, True)),
        ("model.dropout=range(0,0.3,0.1)", Axis("model.dropout", "", (), 0, 0.2, 0.1)),
        ("model.n_layer=2,4,6,4", Axis("model.n_layer", "", ("2", "4", "6"))),
        ("model=choice(tiny,baby)", Axis("model", "", ("tiny", "baby"))),
        ("model.n_kv_head=null,2", Axis("model.n_kv_head", "", ("null", "2"))),
    ],
    ids=str,
)
def test_axes(word: str, expected: Axis) -> None:
    (axis,) = axes(word)
    made = axis.__dict__ | {"override_text": ""}
    assert axis.override_text == word.partition("=")[2] and made == expected.__dict__


def test_files_search_too_and_the_command_line_wins() -> None:
    grid = "sweep.grid={optimizer.lr:'tag(log,interval(1e-4,1e-2))',model.n_layer:[2,4],model.dropout:0.1}"
    assert [axis.key for axis in axes(grid)] == ["optimizer.lr", "model.n_layer"]
    assert [axis.key for axis in axes(grid, "optimizer.lr=1e-3")] == ["model.n_layer"]
    assert read_words(grid).points[0].config.model.dropout == 0.1


def test_values_are_what_their_text_says() -> None:
    """Four digits, inside the limits, and read back as written."""
    lr = Axis("optimizer.lr", "", (), 1.00004e-4, 1e-2, None, True)
    assert [lr.text(v) for v in (0.0012345678, 1.00004e-4, 1e-2)] == ["0.001235", "0.000100004", "0.01"]
    steps = Axis("model.dropout", "", (), 0, 0.3, 0.1)
    assert [steps.value_at(share) for share in (0, 0.3, 0.5, 0.99)] == ["0.0", "0.1", "0.2", "0.3"]
    for axis in (lr, steps):
        for share in (0, 0.3, 0.77, 0.99):
            assert axis.text(axis.value(axis.value_at(share))) == axis.value_at(share)
    with pytest.raises(ValueError, match="is not in"):
        steps.value("0.15")
    with pytest.raises(ValueError, match="is not in"):
        lr.value("0.02")


@pytest.mark.parametrize(
    "word", ["model.dropout=range(0.1,0.5,0.1)", "model.dropout=range(0.3,0,-0.1)", "model.n_layer=range(2,9,2)"]
)
def test_a_range_has_the_values_of_a_grid(word: str) -> None:
    (axis,), grid = axes(word), read_sweep("train", TrainConfig, [word], multirun=True).points
    values = [one.config.model.dropout if "dropout" in word else one.config.model.n_layer for one in grid]
    found = {axis.value_at(share / 100) for share in range(100)}
    assert sorted(map(float, found)) == pytest.approx(sorted(values))


def test_a_choice_becomes_points_with_every_seed() -> None:
    made = read_words(LR, "model=tiny,baby", "training.seed=1,2,1", "model.dropout=0.2").space
    assert made is not None and made.keys == {"optimizer.lr", "model", "training.seed"}
    points = made.points({"optimizer.lr": "0.003", "model": "baby"})
    configs = [point.config for point in points]
    assert [(one.model.name, one.optimizer.lr, one.training.seed) for one in configs] == [
        ("baby", 0.003, 1), ("baby", 0.003, 2),
    ]  # fmt: skip
    assert {one.model.dropout for one in configs} == {0.2}
    assert points[0].changes == {"optimizer.lr": "0.003", "model": "baby", "training.seed": "1"}


def test_what_is_left_out_and_what_cannot_be() -> None:
    made = read_words(LR, "model.n_head=3,4", "sweep.exclude=['optimizer.lr>5e-3']")
    assert made.space is not None
    assert made.points[0].config.model.n_head == 4, "a point that can be stands for all"
    assert made.space.points({"optimizer.lr": "0.006", "model.n_head": "4"}) == []
    with pytest.raises(BadInput, match=r"model.n_head=3: must divide"):
        made.space.points({"optimizer.lr": "0.001", "model.n_head": "3"})


def test_settings() -> None:
    assert read_words(LR).sweeper == Search()
    given = read_words(LR, "hydra.sweeper.trials=30", "hydra.sweeper.at_once=4", "hydra.sweeper.sampler=random")
    assert given.sweeper == Search(trials=30, at_once=4, sampler="random")


REFUSED = [
    ([], "hydra/sweeper=optuna: nothing to search; give intervals or lists, e.g. 'optimizer.lr=tag(log"),
    (["training.seed=1,2"], "nothing to search; give"),
    (["training.seed=interval(1,5)", LR], "can't be searched; a list trains every trial with each seed"),
    (["optimizer.lr=interval(1e-2,1e-4)"], "an interval needs two numbers, the lower one first"),
    (["optimizer.lr=tag(log,interval(0,1))"], "log needs a lower limit above 0"),
    (["optimizer.lr=tag(log,range(1,5,2))"], "log needs a lower limit above 0, and no step"),
    (["optimizer.lr=tag(lgo,interval(1e-4,1e-2))"], "no such tag: lgo; allowed: log"),
    (["model.n_layer=range(5,5)"], "model.n_layer=range(5,5): an empty sweep"),
    (["model.n_layer=range(1,5,0)"], "range(1,5,0)"),
    (["optimizer.lr=interval(1e-4,inf)"], "two numbers"),
    (["optimizer.lr=interval(1e-4,11)"], "optimizer.lr=11.0: out of range; allowed: number in (0, 10]"),
    (["model.dropout=0,1.5"], "model.dropout=1.5: out of range; allowed: number in [0, 1)"),
    (["model.n_layer=interval(2.5,8)"], "model.n_layer is an integer, so its limits must be"),
    (["model.n_layer=0,2"], "model.n_layer=0: out of range"),
    (["model.bias=interval(0,1)"], "model.bias=0.0: a boolean is needed"),
    (["model.activation=gelu,GELU"], "did you mean 'gelu'?"),
    (["model=interval(0,1)"], "model=interval(0,1): needs names; allowed: baby"),
    (["model=tiny,tny"], "did you mean 'tiny'?"),
    (["optimizer.lrr=interval(0,1)"], "optimizer.lrr: no such key or group; did you mean 'optimizer.lr'?"),
    (["hardware.threads=1,2"], "hardware.threads=1,2: does not change results, so it can't be searched"),
    (["hardware=cpu,gpu"], "does not change results"),
    ([LR, "training.batch_tokens=65"], "training.batch_tokens=65: must be a multiple of"),
    ([LR, "model.n_head=3,5"], "model.n_head=3: must divide"),
    ([LR, "model.n_layer=2,4", "sweep.zip=[lr,n_layer]"], "sweep.zip: is for grids"),
    ([LR, "sweep.points=[{model.n_layer:2}]"], "sweep.points: is for grids"),
    ([LR, "sweep.exclude=['optimizer.lr>0']"], "sweep.exclude: excludes all"),
    ([LR, "sweep.exclude=['optimizer.lrr>0']"], "no such key; did you mean 'optimizer.lr'"),
    ([LR, "hydra.sweeper.trials=0"], "hydra.sweeper.trials=0: out of range; allowed: integer in [1, 10000]"),
    ([LR, "hydra.sweeper.trails=3"], "did you mean 'hydra.sweeper.trials'?"),
    ([LR, "hydra.sweeper.eta=3"], "hydra.sweeper.eta: no such key"),
    ([LR, "hydra.sweeper.sampler=tpee"], "not a choice; allowed: one of tpe, random; did you mean 'tpe'?"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(case[0])[:60] for case in REFUSED])
def test_refused(words: list[str], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        read_words(*words)
    assert message in str(refused.value)


def test_without_optuna_intervals_are_refused() -> None:
    for words in ([LR], ["hydra/sweeper=halving", LR], [f"sweep.grid={{optimizer.lr:'{LR.partition('=')[2]}'}}"]):
        with pytest.raises(BadInput, match="a sweep needs a list of values; hydra/sweeper=optuna takes intervals"):
            read_sweep("train", TrainConfig, words, multirun=True)
    with pytest.raises(BadInput, match=r"hydra.sweeper.trials: choose hydra/sweeper=optuna"):
        read_sweep("train", TrainConfig, ["hydra.sweeper.trials=3", "optimizer.lr=1e-3,1e-2"], multirun=True)
    with pytest.raises(BadInput, match="a sweep needs a list of values"):
        read_sweep("sample", SampleConfig, ["temperature=interval(0,1)"], multirun=True)
    with pytest.raises(BadInput, match="several values are a sweep and need -m"):
        read_sweep("train", TrainConfig, [OPTUNA, LR])
    with pytest.raises(BadInput, match="hydra/sweeper: is for sweeps; add -m"):
        read_sweep("train", TrainConfig, [OPTUNA]).check_multirun()
