"""No line of the program unpickles, evaluates, or hands a shell a text; foreign pickles are opened in one module."""

import ast
from collections.abc import Iterator

import pytest

from tests.test_architecture import SOURCES, module_name

FOREIGN = "nanogpt.interop.pickle_import"  # the one module for files of other programs that are pickles
MODULES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "code"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
NAMES = {
    *(f"os.{name}" for name in ("system", "popen", "startfile")),
    *(f"subprocess.{name}" for name in ("getoutput", "getstatusoutput")),
    *(f"torch.{name}" for name in ("load", "jit.load", "hub.load", "serialization.load", "package.PackageImporter")),
    *(f"torch.distributed.{name}_object" for name in ("all_gather", "gather")),
    *(f"torch.distributed.{name}_object_list" for name in ("broadcast", "scatter", "send", "recv")),
    *(f"yaml.{name}" for name in ("load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all")),
    *(f"yaml.{name}" for name in ("Loader", "FullLoader", "UnsafeLoader", "CLoader", "CFullLoader", "CUnsafeLoader")),
    *(f"hydra.utils.{name}" for name in ("instantiate", "call", "get_class", "get_method", "get_object")),
    *(f"omegaconf.OmegaConf.{name}" for name in ("register_resolver", "register_new_resolver")),
    *(f"pandas.{name}" for name in ("read_pickle", "eval")),
    *("runpy.run_path", "runpy.run_module", "torch.distributed.checkpoint.load", "shutil.unpack_archive"),
}
WORDS = {"shell": False, "allow_pickle": False, "trust_remote_code": False, "weights_only": True}  # all they may be
METHODS = {"extractall", "add_safe_globals"}


def imported(tree: ast.AST) -> dict[str, str]:
    """What each imported name of a module stands for: `np` -> `numpy`, `run` -> `subprocess.run`."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {one.asname or one.name.split(".")[0]: one.name if one.asname else "" for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return {name: whole or name for name, whole in names.items()}


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """`numpy.load` of `np.load`, and of `getattr(np, "load")`; empty for what isn't a name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "" if node.id not in BUILTINS else f"builtins.{node.id}")
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, names)
        return f"{owner}.{node.attr}" if owner else ""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        owner, name = dotted(node.args[0], names), node.args[1]
        return f"{owner}.{name.value}" if owner and isinstance(name, ast.Constant) else ""
    return ""


def modules(node: ast.AST) -> Iterator[str]:
    """The modules that a statement, or a call of import_module, brings in."""
    if isinstance(node, ast.Import):
        yield from (one.name for one in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or ""
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        yield from (str(one.value) for one in node.args[:1] if isinstance(one, ast.Constant))


def dangers(text: str) -> Iterator[str]:
    """Every place of a source that could run what it reads, as `line: what`."""
    tree = ast.parse(text)
    names = imported(tree)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        for module in modules(node):
            if module.partition(".")[0] in MODULES:
                yield f"{line}: import {module}"
        if isinstance(node, ast.Name | ast.Attribute | ast.Call) and isinstance(
            getattr(node, "ctx", ast.Load()), ast.Load
        ):
            name = dotted(node, names)
            if name in NAMES or name.removeprefix("builtins.") in BUILTINS:
                yield f"{line}: {name}"
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield f"{line}: .{node.attr}"
        if isinstance(node, ast.keyword) and node.arg in WORDS:
            safe = isinstance(node.value, ast.Constant) and node.value.value is WORDS[node.arg]
            if not safe:
                yield f"{line}: {node.arg}={ast.unparse(node.value)}"
        if isinstance(node, ast.Call) and dotted(node.func, names) == "torch.load":
            words = {word.arg for word in node.keywords}
            if "weights_only" not in words:
                yield f"{line}: torch.load without weights_only"


def test_nothing_runs_what_it_reads() -> None:
    for path in SOURCES:
        found = list(dangers(path.read_text()))
        if module_name(path) == FOREIGN:
            assert {one.partition(": ")[2] for one in found} == {"import pickle", "torch.load"}, found
        else:
            assert not found, path


@pytest.mark.parametrize(
    "line",
    [
        "import pickle as p",
        "from _pickle import loads",
        "import importlib; importlib.import_module('marshal')",
        "import shelve",
        "f = eval",
        "import builtins; builtins.exec('1')",
        "from os import system as s; s('ls')",
        "import os; getattr(os, 'system')('ls')",
        "import subprocess; subprocess.run('ls', shell=True)",
        "import subprocess as sp; sp.getoutput('ls')",
        "run(words, shell=flag)",
        "import torch; torch.load('x', weights_only=False)",
        "import torch; torch.load('x')",
        "from torch import load; load('x', weights_only=safe)",
        "import yaml; yaml.load(text, yaml.SafeLoader)",
        "from yaml import UnsafeLoader as L; print(L)",
        "from hydra.utils import instantiate; instantiate(config)",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "model = Auto.from_pretrained('x', trust_remote_code=True)",
        "from omegaconf import OmegaConf; OmegaConf.register_new_resolver('x', f)",
        "import torch.distributed as dist; dist.all_gather_object(a, b)",
    ],
)
def test_the_check_sees_it(line: str) -> None:
    assert list(dangers(line))


@pytest.mark.parametrize(
    "line",
    [
        "import re; re.compile('x')",
        "model.eval(); settings.compile",
        "class A:\n    compile: bool = False",
        "import subprocess; subprocess.run(['ls'], shell=False)",
        "import numpy as np; np.load('x', allow_pickle=False)",
        "import yaml; yaml.safe_load(text)",
    ],
)
def test_the_check_lets_plain_things_be(line: str) -> None:
    assert not list(dangers(line))
