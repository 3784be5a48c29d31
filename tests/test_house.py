"""The rooms and the import direction: a module imports only from those above it in this list."""

import ast
from pathlib import Path

ROOMS = """
    config files vocabulary toy corpus stream loss dropout model distributed step evaluation generation checkpoint tracking
    run training
""".split()
PACKAGE = Path(__file__).parent.parent / "lstmlm"


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, and foreign packages by their first name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "lstmlm":
            found |= {f"lstmlm.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            found.add(".".join(parts[:2]) if parts[0] == "lstmlm" else parts[0])
    return found


def test_every_module_is_a_room() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*ROOMS, "__init__"}


def test_imports_go_one_way() -> None:
    for i, room in enumerate(ROOMS):
        own = {name.removeprefix("lstmlm.") for name in imports(PACKAGE / f"{room}.py") if name.startswith("lstmlm.")}
        assert own <= set(ROOMS[:i]), f"{room} imports {own - set(ROOMS[:i])} from below"


def test_vocabulary_to_model_know_nothing_of_the_run() -> None:
    for room in ROOMS[ROOMS.index("vocabulary") : ROOMS.index("model") + 1]:
        assert not imports(PACKAGE / f"{room}.py") & {"accelerate", "wandb", "yaml", "tqdm"}, room


def test_slow_imports_wait_until_they_are_used() -> None:
    for room in ROOMS:
        for node in ast.parse((PACKAGE / f"{room}.py").read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None)]
                assert not {"wandb", "datasets", "jsonargparse", "matplotlib"} & set(names), room
