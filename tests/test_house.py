"""The rooms and the import direction: a module imports only from those above it in this list."""

import ast
from pathlib import Path

ROOMS = """
    console files records config
    data.tokenize data.vocabulary data.toy data.reading data.sources data.table data.corpus
    model.dropout model.loss model.lstm model.layers model.language_model model.pretrained model.imported
    runtime.hardware runtime.distributed runtime.launch
    evaluation.perplexity evaluation.words evaluation.text evaluation.protocol evaluation.adaptation evaluation.evaluate
    evaluation.surprisal evaluation.surprisal_page evaluation.surprisal_tables
    evaluation.breakdown evaluation.tuning evaluation.pairs
    generation
    training.optimizer training.segments training.step training.build training.cursor training.checkpoint
    training.run_directory training.resume training.tracking training.banner training.profiling
    training.best_model training.run training.dry_run training.loop
    report.runs report.plots report.page report.wandb_report
    export.modeling_lstmlm export.tokenization_lstmlm export.transformers export.onnx
    cli __main__
""".split()
PACKAGE = Path(__file__).parent.parent / "lstmlm"


def path_of(room: str) -> Path:
    return PACKAGE / f"{room.replace('.', '/')}.py"


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports (by their names in ROOMS), and foreign packages by their first name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            if node.module.split(".")[0] != "lstmlm":
                found.add(node.module.split(".")[0])
            for name in names if node.module.split(".")[0] == "lstmlm" else []:
                parts = name.split(".")[1:]
                room = next((r for n in (2, 1) if (r := ".".join(parts[:n])) in ROOMS), None)
                assert room, f"{path} imports {name}, which is in no room"
                found.add(f"lstmlm.{room}")
    return found


def test_every_module_is_a_room() -> None:
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    assert modules == set(ROOMS)


def test_imports_go_one_way() -> None:
    for i, room in enumerate(ROOMS):
        own = {name.removeprefix("lstmlm.") for name in imports(path_of(room)) if name.startswith("lstmlm.")}
        assert own <= set(ROOMS[:i]), f"{room} imports {own - set(ROOMS[:i])} from below"


def test_data_and_model_know_nothing_of_the_run_and_only_the_config_parses() -> None:
    for room in ROOMS:
        foreign = {"accelerate", "wandb", "yaml", "tqdm"} if room.startswith(("data.", "model.")) else set()
        parsers = {"jsonargparse", "argparse"} if room != "config" else set()
        assert not imports(path_of(room)) & (foreign | parsers), room


def test_slow_imports_wait_until_they_are_used() -> None:
    for room in ROOMS:
        for node in ast.parse(path_of(room).read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [getattr(node, "module", None) or alias.name for alias in node.names]
                slow = {"wandb", "wandb_workspaces", "datasets", "jsonargparse", "matplotlib", "jinja2", "pyarrow"}
                assert not slow & {module.partition(".")[0] for module in modules}, room
