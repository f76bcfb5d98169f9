"""The layer table of the design, held by reading imports, and the rules for modules."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 340
MAX_FUNCTION_LINES = 60
# Functions that may be longer, each for its reason.
LONG_FUNCTIONS = {
    "mnft.training.fit.fit",  # the order of epochs, evaluation and saving, from top to bottom
}
# A function that is used once and names no idea makes the reader jump for nothing.
MAX_USED_ONCE = 8.0  # in 1,000 lines

# One row a package. A module imports lower layers and its own package, nothing else.
LAYERS = {
    "mnft.cli": 10,
    "mnft.commands": 9,
    "mnft.report": 8,
    "mnft.search": 8,
    "mnft.compare": 7,
    "mnft.compress": 7,
    "mnft.evaluation": 6,
    "mnft.exports": 5,
    "mnft.runs": 5,
    "mnft.training": 4,
    "mnft.tasks": 3,
    "mnft.data": 2,
    "mnft.device": 2,
    "mnft.model": 2,
    "mnft.config": 1,
    "mnft.console": 1,
    "mnft.figures": 1,
    "mnft": 0,  # the other single modules: errors, files, text, ...
}
# `python -m mnft` is the one exception: it lies in the lowest package and starts the highest.
EXCEPTION = ("mnft.__main__", "mnft.cli.app")
# Importing these takes seconds.
HEAVY = {"torch", "torchvision", "timm", "numpy", "sklearn", "scipy", "matplotlib", "PIL"}
LIGHT_PACKAGES = {"mnft.config", "mnft.console", "mnft.cli"}
TYPER_USERS = {"mnft.cli"}
CONSOLE_USERS = {"mnft.cli", "mnft.commands"}
WRITERS_TO_STDOUT = ("mnft.console.messages", "mnft.commands.predict")


@dataclass(frozen=True)
class Module:
    name: str
    source: str
    is_package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def package(self) -> str:
        return self.name if self.is_package else self.name.rpartition(".")[0]


def read_modules() -> list[Module]:
    modules = []
    for path in sorted((ROOT / "mnft").rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return modules


MODULES = read_modules()
NAMES = {module.name for module in MODULES}


def package_of(name: str) -> str:
    """The row of the table that a module belongs to."""
    package = ".".join(name.split(".")[:2])
    return package if package in LAYERS else "mnft"


def layer(name: str) -> int | None:
    """The layer of a module; None for a package that the table does not know."""
    if name.count(".") > 1 and package_of(name) == "mnft":
        return None
    return LAYERS[package_of(name)]


def within(name: str, parents: tuple[str, ...] | set[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def imports(module: Module, known: set[str], *, at_import: bool = False) -> Iterator[str]:
    """Modules that a module imports: those of `known` by their full names, others as written.

    Args:
        module: the one that imports.
        known: names of modules, which tells `from package import module` from other names.
        at_import: leave out what is imported inside functions or for type checking only.
    """
    for node in _statements(module.tree) if at_import else ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in known else base


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _statements(child)


def wrong_imports(module: Module, known: set[str]) -> list[str]:
    """Imports against the table, as "a imports b"."""
    own = layer(module.name)
    assert own is not None, f"{module.name} has no layer"
    wrong = []
    for other in sorted(set(imports(module, known))):
        if not within(other, {"mnft"}) or (module.name, other) == EXCEPTION:
            continue
        below = layer(other)
        same_package = package_of(other) == package_of(module.name)
        verb_imports_verb = same_package and package_of(other) == "mnft.commands"
        if below is None or not (below < own or same_package) or verb_imports_verb:
            wrong.append(f"{module.name} imports {other}")
    return wrong


def writes_to_stdout(module: Module) -> bool:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and node.id == "print":
            return True
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {
            "sys.stdout",
            "sys.__stdout__",
        }:
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "sys":
            return any(alias.name == "stdout" for alias in node.names)
    return False


def long_functions(module: Module) -> list[str]:
    """Full names of functions with more than MAX_FUNCTION_LINES lines, without their docstrings."""
    long = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and node.body[1:] else node.body[0]
            if (node.end_lineno or 0) - first.lineno + 1 >= MAX_FUNCTION_LINES:
                long.append(f"{module.name}.{node.name}")
    return long


def used_once(sources: list[str]) -> list[str]:
    """Names that stand exactly twice in all sources together, one of them in a `def`."""
    words = Counter(word for source in sources for word in re.findall(r"[A-Za-z_]\w*", source))
    defined = {
        node.name
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return sorted(name for name in defined if words[name] == 2)


each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


@each_module
def test_a_module_has_a_layer_and_imports_downward(module):
    assert layer(module.name) is not None, f"put {module.name} into the table"
    assert wrong_imports(module, NAMES) == []


@each_module
def test_the_console_and_rich_have_few_users(module):
    used = set(imports(module, NAMES))
    if not within(module.name, CONSOLE_USERS):
        assert "mnft.console" not in used
    if not within(module.name, {"mnft.console"}):
        assert not [name for name in used if within(name, {"rich"})]
    if not within(module.name, TYPER_USERS):
        assert not [name for name in used if within(name, {"typer", "click"})]


@each_module
def test_light_modules_import_nothing_heavy(module):
    if layer(module.name) == 0 or within(module.name, LIGHT_PACKAGES):
        heavy = [n for n in imports(module, NAMES, at_import=True) if within(n, HEAVY)]
        assert heavy == []


EARLY = {
    "mnft",
    "mnft.cli.data",
    "mnft.cli.edge",
    "mnft.cli.evaluate",
    "mnft.errors",
    "mnft.cli.exits",
    "mnft.cli.options",
    "mnft.cli.report",
    "mnft.cli.search",
    "mnft.cli.starting",
    "mnft.cli.usage",
}


def test_the_command_line_imports_commands_and_console_late():
    cli = next(module for module in MODULES if module.name == "mnft.cli.app")
    early = set(imports(cli, NAMES, at_import=True))
    assert {n for n in early if within(n, {"mnft"})} == EARLY
    assert "mnft.commands.train" in set(imports(cli, NAMES))


@each_module
def test_only_the_console_and_predict_write_to_stdout(module):
    if module.name in {"mnft.cli.exits", "mnft.exports.quiet", "mnft.signals", "mnft.streams"}:
        return  # they point stdout elsewhere
    assert writes_to_stdout(module) == (module.name in WRITERS_TO_STDOUT)


@each_module
def test_a_module_says_its_responsibility_and_is_not_too_long(module):
    assert ast.get_docstring(module.tree)
    assert module.source.count("\n") <= MAX_LINES


def test_few_functions_are_used_once():
    once = used_once([module.source for module in MODULES])
    lines = sum(module.source.count("\n") for module in MODULES)
    assert 1000 * len(once) / lines <= MAX_USED_ONCE, once


def test_only_the_listed_functions_are_long():
    found = {name for module in MODULES for name in long_functions(module)}
    assert found == LONG_FUNCTIONS


def test_no_module_is_called_by_a_word_that_says_nothing():
    assert not {name.rpartition(".")[2] for name in NAMES} & {"utils", "helpers", "common", "misc"}


def test_the_table_names_packages_that_exist():
    assert set(LAYERS) <= NAMES
    assert {package_of(name) for name in NAMES} == set(LAYERS)
    assert len(NAMES) > 30


# Each verb is a file of its own, so that folder grows with them.
@pytest.mark.parametrize("folder", sorted({path.parent for path in (ROOT / "mnft").rglob("*.py")}))
def test_no_folder_hides_groups_of_files(folder):
    assert len(list(folder.glob("*.py"))) <= (20 if folder.name == "commands" else 15)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*/**/test_*.py")))
def test_tests_lie_in_the_same_tree_as_what_they_test(path):
    folder = path.parent.relative_to(ROOT / "tests")
    assert folder.parts[0] in {"faults", "fuzz", "gpu"} or (ROOT / "mnft" / folder).is_dir()


# --- the checks can fail

KNOWN = {*NAMES, "mnft.data.decode", "mnft.model.factory", "mnft.training.state"}


@pytest.mark.parametrize(
    ("name", "source", "wrong"),
    [
        ("mnft.errors", "from mnft.config import load", "mnft.config.load"),
        (
            "mnft.model.freeze",
            "def f():\n    from mnft.data import decode",
            "mnft.data.decode",
        ),
        ("mnft.config.load", "import mnft.console", "mnft.console"),
        ("mnft.data.decode", "from mnft.model.factory import build_model", "mnft.model.factory"),
        ("mnft.data.decode", "from ..model import factory", "mnft.model.factory"),
        ("mnft.device.select", "from mnft.training.state import TrainState", "mnft.training.state"),
        (
            "mnft.tasks.classify.predictions",
            "from mnft.training.state import x",
            "mnft.training.state",
        ),
        ("mnft.model.profile", "from mnft.commands import train", "mnft.commands.train"),
        ("mnft.commands.train", "import mnft.cli.app", "mnft.cli.app"),
        ("mnft.commands.train", "from mnft.commands import fetch", "mnft.commands.fetch"),
        ("mnft.runs.folder", "from mnft.exports import artifact", "mnft.exports.artifact"),
        ("mnft.training.fit", "import mnft.unknown.module", "mnft.unknown.module"),
    ],
)
def test_an_import_against_the_table_is_found(name, source, wrong):
    assert wrong_imports(Module(name, source), KNOWN) == [f"{name} imports {wrong}"]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("mnft.data.transforms", "from mnft.config.schema import AugmentConfig"),
        ("mnft.data.decode", "from mnft.data import folder\nfrom . import folder"),
        ("mnft.runs.folder", "from mnft.training.state import TrainState"),
        ("mnft.training.epoch.loop", "from mnft.training.state import TrainState"),
        ("mnft.training.fit", "import mnft, torch\nfrom mnft.data.batches.workers import Batches"),
    ],
)
def test_an_import_by_the_table_is_right(name, source):
    assert wrong_imports(Module(name, source), KNOWN) == []


def test_a_module_outside_the_table_has_no_layer():
    assert layer("mnft.engine.new_module") is None
    assert layer("mnft.data.new_module") == 2


def test_late_imports_are_told_from_early_ones():
    module = Module(
        "mnft.x",
        "import os\nif TYPE_CHECKING:\n    import torch\nif 1:\n    import timm.data\n"
        "class A:\n    import numpy\n    def f(self):\n        import PIL\n",
    )
    assert set(imports(module, KNOWN, at_import=True)) == {"os", "timm.data", "numpy"}
    assert set(imports(module, KNOWN)) == {"os", "torch", "timm.data", "numpy", "PIL"}


def test_a_function_that_is_used_once_is_found():
    sources = [
        "def step():\n    pass\ndef idea():\n    pass\ndef public():\n    pass\n",
        "from a import idea\nstep()\nidea()\n",
    ]
    assert used_once(sources) == ["step"]


def test_a_long_function_is_found():
    body = "x = 1\n    " * (MAX_FUNCTION_LINES - 1)
    assert long_functions(Module("mnft.x", f"def f():\n    {body}")) == []
    assert long_functions(Module("mnft.x", f"def f():\n    {body}x = 2\n")) == ["mnft.x.f"]


@pytest.mark.parametrize(
    "source",
    ["print(1)", "f = print", "import sys\nsys.stdout.write('')", "from sys import stdout"],
)
def test_writing_to_stdout_is_found(source):
    assert writes_to_stdout(Module("mnft.x", source))
    assert not writes_to_stdout(Module("mnft.x", "import sys\nsys.stderr.write(fingerprint(1))"))


# --- the seam: what knows labels, and figures by name, lies in the task's folder

KNOWS_CLASSES = re.compile(
    r"\b(logits|softmax|num_classes|class_names?|accuracy|macro_f1|top_?[k5]|confusion)\b"
)
# Files on users' disks keep the key by which earlier versions wrote the labels, and timm calls the
# number of outputs `num_classes`, whatever they mean.
KEYS = re.compile(r"'class_names?'|\bclass_names are not those\b")
TIMM = re.compile(r"\bnum_classes\b")
# Tasks, their config, what reads and writes folders of classes, and the help for people.
KNOW_CLASSES = {
    "mnft.tasks",
    "mnft.config",
    "mnft.data.readers",
    "mnft.data.fetch",
    "mnft.commands.fetch",
    "mnft.cli",
}
USE_TIMM = {"mnft.model", "mnft.commands.models"}


def find_class_words(source: str, allowed: re.Pattern[str] = KEYS) -> list[str]:
    """Lines of code, without comments and docstrings, that know classes."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body[0] = ast.Pass()
    lines = ast.unparse(tree).splitlines()
    return [line for line in lines if KNOWS_CLASSES.search(allowed.sub("", line))]


@each_module
def test_only_tasks_know_classes(module):
    if not within(module.name, KNOW_CLASSES):
        uses_timm = within(module.name, USE_TIMM)
        allowed = re.compile(f"{KEYS.pattern}|{TIMM.pattern}") if uses_timm else KEYS
        assert find_class_words(module.source, allowed) == []


@each_module
def test_only_the_table_of_tasks_knows_a_task(module):
    if not within(module.name, {"mnft.tasks"}):
        assert not [
            name for name in imports(module, NAMES) if name.startswith("mnft.tasks.classify")
        ]


def test_code_that_knows_classes_is_found():
    assert find_class_words("'''logits'''\nx = logits.argmax(1)  # accuracy") == [
        "x = logits.argmax(1)"
    ]
    assert find_class_words("def f():\n    '''Of num_classes.'''\n    return task.labels") == []


# --- English: a line of `Args:` or `Attributes:` stands alone

FRAGMENT = re.compile(
    r"^ {8,12}[a-z]\w*: (?:of|that|which|by|is|at|with|from|on|to|as|whose|may|its|in) ",
    re.MULTILINE,
)


@each_module
def test_a_line_of_args_is_a_noun_phrase(module):
    assert FRAGMENT.findall(module.source) == []


def test_a_fragment_is_found():
    assert FRAGMENT.findall("    Args:\n        path: of the file.\n")
    assert not FRAGMENT.findall("    Args:\n        path: where to write the ONNX file.\n")


def test_a_task_is_added_without_touching_the_rest():
    """The proof of the seam: nothing outside its folder, the readers and the config names it."""
    tasks = {path.parent.name for path in (ROOT / "mnft" / "tasks").glob("*/task.py")}
    for task in tasks - {"classify"}:
        words = re.compile(rf"\b{task}\b|{task}_|_{task}", re.IGNORECASE)
        places = ("mnft.config", "mnft.data.readers", f"mnft.tasks.{task}")
        named = [
            f"{module.name}: {line.strip()}"
            for module in MODULES
            if not within(module.name, set(places))
            for line in module.source.splitlines()
            if words.search(line)
        ]
        assert named == []
