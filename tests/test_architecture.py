"""The structure of the tree: import layers, sizes, names and docstrings."""

import ast
import graphlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTICIPLES = (
    "told known given kept made written shown found drawn built taken done held seen said chosen frozen broken lost "
    "left sent spent meant hidden"
)
NOUN_OPENINGS = "of what whether who how where which when as if in that this it"
VERB_OPENINGS = f"{NOUN_OPENINGS} the a an all each every no one some those for with by"
SOURCES = sorted(
    [
        *ROOT.glob("*.py"),
        *ROOT.glob("nanogpt/**/*.py"),
        *ROOT.glob("api/**/*.py"),
        *ROOT.glob("cli/**/*.py"),
        *ROOT.glob("launch/**/*.py"),
        *ROOT.glob("experiments/**/*.py"),
    ]
)
FILE_LINES, FUNCTION_LINES = 300, 40

# A module may import modules of lower layers, and those of its own entry.
LAYERS = [
    ("nanogpt.console", "nanogpt.formatting", "nanogpt.entry_names", "nanogpt.redaction"),
    ("nanogpt.fields", "nanogpt.run_state", "nanogpt.json_output"),
    ("nanogpt.errors",),
    ("nanogpt.output_paths", "nanogpt.saved_text", "nanogpt.cuda_driver", "nanogpt.child_process"),
    ("nanogpt.device_errors",),
    ("nanogpt.files",),
    ("nanogpt.schema", "nanogpt.safetensors_writer", "nanogpt.cpu_threads", "nanogpt.hf_hub"),
    ("nanogpt.distributed.env", "nanogpt.distributed.signals"),
    ("nanogpt.distributed.spawn",),
    ("nanogpt.optim",),  # each optimizer's own file; the config asks what they declare
    ("nanogpt.config",),
    ("nanogpt.progress", "nanogpt.torch_compile", "nanogpt.gpus"),
    ("nanogpt.metrics_check",),
    ("nanogpt.metrics_file", "nanogpt.provenance"),
    ("nanogpt.estimates.flops", "nanogpt.estimates.gpu_specs"),
    ("nanogpt.tokenizer", "nanogpt.device", "nanogpt.cost", "nanogpt.optim.groups", "nanogpt.optim.schedule"),
    ("nanogpt.estimates",),
    ("nanogpt.model", "nanogpt.distributed.process_group", "nanogpt.tracking"),
    ("nanogpt.distributed.rendezvous", "nanogpt.distributed.watchdog"),
    ("nanogpt.measurement", "nanogpt.loss_check"),
    ("nanogpt.comparability", "nanogpt.statistics"),
    ("nanogpt.verdicts", "nanogpt.reference"),
    ("nanogpt.seed_gains",),
    ("nanogpt.data", "nanogpt.interop.pickle_import", "nanogpt.optim.build"),
    ("nanogpt.checkpoint", "nanogpt.evaluation", "nanogpt.generation"),
    ("nanogpt.weights_digest",),
    ("nanogpt.run_identity",),
    ("nanogpt.forking",),
    ("nanogpt.run_directory",),
    ("nanogpt.interop",),
    ("nanogpt.interop.load_model",),
    ("nanogpt.generation.answers",),
    ("nanogpt.training", "nanogpt.generation.command", "nanogpt.interop.export", "nanogpt.tracking.sync"),
    ("nanogpt.evaluation.command", "nanogpt.serving"),
    ("nanogpt.benchmark", "nanogpt.doctor"),
    ("nanogpt.gpu_check",),
    ("cli",),
    ("launch",),
    ("experiments",),
    ("api",),
    ("nanogpt",),  # nanogpt/__init__.py alone
    ("train", "prepare", "sample", "evaluate", "bench"),
]
THIRD_PARTY = {  # library -> the only places that may import it
    "hydra": ("cli", "api.compose"),
    "omegaconf": ("cli",),
    "pickle": ("nanogpt.interop.pickle_import",),
    "wandb": ("nanogpt.tracking.wandb",),
    "tensorboard": ("nanogpt.tracking.tensorboard",),
    "trackio": ("nanogpt.tracking.trackio",),
    "submitit": ("launch",),
    "optuna": ("launch.search",),
    "torchao": ("nanogpt.model.float8",),
    "transformers": (
        "nanogpt.benchmark.baselines",
        "nanogpt.doctor.invariants",
        "nanogpt.interop.verify_export",
    ),
    "matplotlib": ("nanogpt.tracking.plots", "experiments.plots"),
    "scipy": ("experiments.scaling.fit", "nanogpt.statistics", "nanogpt.verdicts"),
    "jinja2": ("experiments.document", "nanogpt.serving.chat_template"),
    "fastapi": ("nanogpt.serving.app", "nanogpt.serving.engine"),
    "uvicorn": ("nanogpt.serving.app",),
    "rich": ("nanogpt.formatting", "nanogpt.progress"),
    "datasets": ("nanogpt.data.hub_data",),
    "pyarrow": ("nanogpt.data.file_kinds",),
    "tiktoken": ("nanogpt.tokenizer",),
    "tokenizers": ("nanogpt.tokenizer", "nanogpt.interop.hf_tokenizer"),
    "huggingface_hub": ("nanogpt.hf_hub",),
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


MODULES = {module_name(path): path for path in SOURCES}


def imported_modules(path: Path) -> Iterator[str]:
    """Yield what a file imports, lazy imports included. `from package import module` imports the module."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [name for name in names if name in MODULES] or [node.module]


def is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def find_layer(module: str) -> tuple[int, str]:
    """Return the number of a module's layer and the entry of LAYERS that names it most closely."""
    entries = [
        (i, entry)
        for i, layer in enumerate(LAYERS)
        for entry in layer
        if (module == entry if entry == "nanogpt" else is_inside(module, entry))
    ]
    if not entries and MODULES[module].name == "__init__.py":
        return 0, module  # a package of several layers, which has no code
    assert entries, f"{module} is missing in LAYERS"
    return max(entries, key=lambda entry: len(entry[1]))


def test_imports_point_one_way() -> None:
    for module, path in MODULES.items():
        layer, entry = find_layer(module)
        for name in imported_modules(path):
            package = name.split(".")[0]
            if name in MODULES:
                below, other = find_layer(name)
                assert below < layer or other == entry, f"{module} imports {name}, which is not below it"
            if package in THIRD_PARTY:
                assert any(is_inside(module, user) for user in THIRD_PARTY[package]), f"{module} imports {package}"


def test_no_import_cycles() -> None:
    graph = {name: MODULES.keys() & set(imported_modules(path)) for name, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_files_and_functions_stay_small() -> None:
    for path in SOURCES:
        assert len(path.read_text().splitlines()) <= FILE_LINES, path
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, f"{path}: {node.name}"


def test_docstrings_open_plainly() -> None:
    """Modules and public classes have one. A function's begins with a verb, the others with a noun."""
    for path in SOURCES:
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            docstring, name = ast.get_docstring(node) or "", getattr(node, "name", "module")
            if not isinstance(node, ast.FunctionDef) and not name.startswith("_"):
                assert docstring, f"{path}: {name} has no docstring"
            first = docstring.partition(" ")[0].strip(".,:;").lower()
            words = NOUN_OPENINGS if not isinstance(node, ast.FunctionDef) or is_property(node) else VERB_OPENINGS
            assert first not in words.split() and not docstring.startswith("The same"), (
                f"{path}: {name}: {docstring[:60]}"
            )


def is_property(node: ast.FunctionDef) -> bool:
    names = [mark.id for mark in node.decorator_list if isinstance(mark, ast.Name)]
    return "property" in names or "cached_property" in names


def test_no_catch_all_modules() -> None:
    assert not {"utils", "common", "helpers", "misc"} & {path.stem for path in SOURCES}


def test_yaml_holds_values_only() -> None:
    for path in ROOT.glob("conf/**/*.yaml"):
        text = path.read_text()
        assert "_target_" not in text and "${" not in text, path
        assert len(text.splitlines()) <= 40, path
        assert text.startswith("#"), f"{path} begins with what it is"


def test_the_map_has_every_module_once() -> None:
    """docs/architecture.md: one line per file, under its package."""
    text = (ROOT / "docs" / "architecture.md").read_text().partition("## The files")[2]
    listed: list[str] = []
    package = ""
    for line in text.splitlines():
        if match := re.match(r"([\w/]+/)$", line):
            package = match[1]
        elif match := re.match(r"  (\w+\.py) ", line):
            listed.append(package + match[1])
    modules = [path.relative_to(ROOT).as_posix() for path in SOURCES if path.name != "__init__.py"]
    assert sorted(listed) == sorted(name for name in modules if "/" in name)


def test_functions_in_the_life_of_a_run_exist() -> None:
    rows = re.findall(
        r"^\| \d+ \|.*\| `([\w/]+\.py)`(.*)\|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE
    )
    assert len(rows) == 12
    for path, names in rows:
        tree = ast.parse((ROOT / path).read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert set(re.findall(r"`(\w+)`", names)) <= defined, path


def test_class_names_are_unique() -> None:
    where: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(module_name(path))
    assert not {name: modules for name, modules in where.items() if len(modules) > 1}


def test_functions_are_not_named_by_a_bare_participle() -> None:
    """`write_incident`, not `kept`. A property may be one."""
    for path in SOURCES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef) and not is_property(node):
                bare = re.fullmatch(r"_?[a-z]+ed", node.name) and node.name not in ("seed", "need", "feed", "speed")
                assert not bare and node.name not in PARTICIPLES.split(), f"{path}: {node.name}"
