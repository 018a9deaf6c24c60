"""The shape of the tree: who may import whom, how large things may grow, and what may not appear at all."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    [
        *ROOT.glob("*.py"),
        *ROOT.glob("nanogpt/**/*.py"),
        *ROOT.glob("conf/**/*.py"),
        *ROOT.glob("launch/**/*.py"),
        *ROOT.glob("experiments/**/*.py"),
    ]
)
FILE_LINES, FUNCTION_LINES = 320, 60

# A module may import modules of lower layers, and its own room.
LAYERS = [
    ("nanogpt.entry_names", "nanogpt.redaction", "nanogpt.field_values", "nanogpt.run_state"),
    ("nanogpt.errors",),
    ("nanogpt.outputs", "nanogpt.kept_text", "nanogpt.cuda_driver"),
    ("nanogpt.device_errors",),
    ("nanogpt.files",),
    ("nanogpt.schema", "nanogpt.tensor_file", "nanogpt.place", "nanogpt.cores", "nanogpt.hub"),
    ("nanogpt.optim",),  # each optimizer's own file; the config asks what they declare
    ("nanogpt.config",),
    ("nanogpt.torch_compile", "nanogpt.gpus"),
    (
        "nanogpt.tokenizer",
        "nanogpt.model",
        "nanogpt.optim.groups",
        "nanogpt.optim.schedule",
        "nanogpt.tracking",
        "nanogpt.device",
        "nanogpt.distributed",
        "nanogpt.provenance",
    ),
    ("nanogpt.measurement", "nanogpt.loss_check"),
    ("nanogpt.comparability",),
    ("nanogpt.data", "nanogpt.foreign", "nanogpt.optim.build"),
    ("nanogpt.checkpoint", "nanogpt.evaluation", "nanogpt.generate"),
    ("nanogpt.weights_digest",),
    ("nanogpt.run_identity",),
    ("nanogpt.forking",),
    ("nanogpt.run_directory",),
    ("nanogpt.interop",),
    ("nanogpt.trained",),
    ("nanogpt.completion",),
    ("nanogpt.training", "nanogpt.sampling", "nanogpt.exporting", "nanogpt.syncing"),
    ("nanogpt.evaluating",),
    ("nanogpt.benchmark", "nanogpt.doctor", "conf"),
    ("nanogpt.gpu_check",),
    ("launch",),
    ("experiments",),
    (
        "train",
        "prepare",
        "sample",
        "evaluate",
        "bench",
        "nanogpt.export",
        "nanogpt.tracking.__main__",
        "nanogpt.doctor.__main__",
    ),
]
THIRD_PARTY = {  # library -> the only places that may import it
    "hydra": ("conf",),
    "omegaconf": ("conf",),
    "pickle": ("nanogpt.foreign",),
    "wandb": ("nanogpt.tracking.wandb",),
    "tensorboard": ("nanogpt.tracking.tensorboard",),
    "trackio": ("nanogpt.tracking.trackio",),
    "submitit": ("launch",),
    "optuna": ("launch.search",),
    "torchao": ("nanogpt.model.float8",),
    "transformers": (
        "nanogpt.benchmark.rivals",
        "nanogpt.doctor.invariants",
        "nanogpt.interop.verify_export",
    ),
    "matplotlib": ("nanogpt.tracking.plots", "experiments.pictures"),
    "scipy": ("experiments.fit", "experiments.statistics"),
    "jinja2": ("experiments.document",),
    "rich": ("nanogpt.tracking.console", "nanogpt.doctor.table"),
    "datasets": ("nanogpt.data.hub_data",),
    "pyarrow": ("nanogpt.data.file_kinds",),
    "tiktoken": ("nanogpt.tokenizer",),
    "tokenizers": ("nanogpt.tokenizer", "nanogpt.interop.hf_tokenizer"),
    "huggingface_hub": ("nanogpt.interop.sources", "nanogpt.hub"),
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from nanogpt import schema` names a module; `from nanogpt.schema import x` does not need x
            yield from (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "nanogpt" else [node.module]
            )


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def place(module: str) -> tuple[int, str]:
    found = [(i, room) for i, layer in enumerate(LAYERS) for room in layer if inside(module, room)]
    assert found or module in ("nanogpt",), f"{module} has no place in LAYERS"
    return max(found, key=lambda one: len(one[1])) if found else (0, module)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    module = module_name(path)
    layer, room = place(module)
    for name in imports(ast.parse(path.read_text())):
        if name.split(".")[0] in ("nanogpt", "conf", "launch", "experiments"):
            below, other = place(name)
            assert below < layer or other == room, f"{module} imports {name}, which is not below it"
        root = name.split(".")[0]
        if root in THIRD_PARTY:
            assert any(inside(module, allowed) for allowed in THIRD_PARTY[root]), f"{module} may not import {root}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_and_functions_stay_small_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= FILE_LINES
    assert ast.get_docstring(tree), "a module says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, node.name
            elif not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{node.name} says what it is"


def test_no_rooms_for_odds_and_ends() -> None:
    assert not {"utils", "common", "helpers", "misc"} & {path.stem for path in SOURCES}


def test_yaml_holds_values_only() -> None:
    for path in ROOT.glob("conf/**/*.yaml"):
        text = path.read_text()
        assert "_target_" not in text and "${" not in text, path
        assert len(text.splitlines()) <= 40, path
        assert text.startswith("#"), f"{path} begins with what it is"
