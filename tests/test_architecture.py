"""The picture of the house, held by reading the imports: arrows point down, and two worlds never meet."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gptcli

ROOT = Path(gptcli.__file__).parent
MODULES = {
    ".".join(("gptcli", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
HEAVY = {"torch", "safetensors", "tokenizers", "numpy"}
TENSORS = {
    *("gptcli.speed", "gptcli.untrained", "gptcli.compiled", "gptcli.few", "gptcli.linear"),
    *("gptcli.lookup", "gptcli.quantize", "gptcli.attend"),
    *("gptcli.cache", "gptcli.checkpoint", "gptcli.compare", "gptcli.data", "gptcli.generation", "gptcli.lora"),
    *("gptcli.model", "gptcli.optimizer", "gptcli.rope", "gptcli.sample", "gptcli.saves", "gptcli.score"),
    *("gptcli.train", "gptcli.attention", "gptcli.trace", "gptcli.lens", "gptcli.divergence", "gptcli.ledger"),
    *(
        "gptcli.whatif",
        "gptcli.walk",
        "gptcli.occlusion",
        "gptcli.flow",
        "gptcli.neurons",
        "gptcli.proof",
        "gptcli.scan",
        "gptcli.draws",
        "gptcli.strips",
        "gptcli.tour.guide",
    ),
    *("gptcli.batch", "gptcli.alike", "gptcli.certain", "gptcli.joining", "gptcli.rows", "gptcli.together"),
}
TERMINAL = {"rich", "typer"}

# each floor may import from itself and from the floors below it
FLOORS = [
    ("errors", "disk", "user_cache", "strict_json", "headers"),
    ("records", "records_xray", "tables", "config", "sampling", "recipe", "presets"),
    ("config_json", "fixes", "folder", "settings", "text_stream", "places"),
    ("configs", "memory", "tokens", "cache", "rope", "rows", "sample", "certain", "linear"),
    ("families", "attend", "model", "corpus", "pairs", "paper", "catalogue", "priming"),
    ("layout", "ahead", "data", "optimizer", "compiled"),
    ("quantize", "few"),
    ("checkpoint", "describe", "model_choice", "params", "budget", "speed"),
    ("lookup",),
    ("generation", "batch", "alike", "joining", "together", "train", "saves", "score", "lora"),
    ("compare", "untrained", "attention", "divergence"),
    ("trace",),
    ("lens",),
    ("ledger", "occlusion", "strips"),
    ("whatif", "walk", "flow", "neurons", "proof", "scan", "trace_file", "xray_json"),
    ("draws",),
    ("tour",),
    ("render",),
    ("commands",),
    ("cli",),
    ("__main__",),
]


def imports(path: Path, *, when_imported: bool) -> set[str]:
    """Modules that a file imports: all of them, or only those it needs to be imported itself."""
    found = set[str]()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if when_imported and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in MODULES)
        waiting.extend(ast.iter_child_nodes(node))
    return found


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def floor(module: str) -> int:
    part = module.split(".")[1]
    return next(i for i, names in enumerate(FLOORS) if part in names)


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"gptcli"}))
def test_arrows_point_down_only(module: str) -> None:
    for name in imports(MODULES[module], when_imported=False):
        if name.startswith("gptcli."):
            assert floor(name) <= floor(module), f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_tensors_and_terminal_never_meet_below_the_commands(module: str) -> None:
    names = imports(MODULES[module], when_imported=False)
    if module in TENSORS:
        assert not roots(names) & TERMINAL and not any(name.startswith("gptcli.render") for name in names)
    if module.startswith("gptcli.render"):
        assert not roots(names) & HEAVY and not names & TENSORS


@pytest.mark.parametrize("module", sorted(MODULES.keys() - TENSORS))
def test_everything_else_can_be_imported_without_torch(module: str) -> None:
    """Through all that it imports in turn."""
    seen, waiting = set[str](), [module]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in MODULES:
            continue
        seen.add(name)
        found = imports(MODULES[name], when_imported=True)
        assert not roots(found) & HEAVY, f"{name} imports {roots(found) & HEAVY}"
        waiting.extend(found)
    assert not seen & TENSORS


def test_no_family_is_named_in_the_decoder() -> None:
    from gptcli import FAMILIES

    for module in ("model", "cache", "rope", "config", "sample", "generation"):
        tree = ast.parse((ROOT / f"{module}.py").read_text())
        texts = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not texts & FAMILIES.keys()


def test_the_public_face_is_whole() -> None:
    for name in gptcli.__all__:
        assert getattr(gptcli, name) is not None
    assert set(gptcli.__all__) == set(gptcli._HOME)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        getattr(gptcli, "nothing_like_it")  # noqa: B009
