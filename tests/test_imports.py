"""What imports what."""

import ast
import importlib
import os
import subprocess
import sys

import pytest
from conftest import ROOT

ARCHITECTURES = ["net", "cnn", "rnn", "rnn_classifier", "faces.face_embedder"]
MODULES = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for package in ("lit_models", "datamodules", "rl")
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__main__.py"
)
EXTRAS = [
    "onnx",
    "onnxscript",
    "onnxruntime",
    "safetensors",
    "cv2",
    "sklearn",
    "moviepy",
    "pygame",
    "Box2D",
    "mujoco",
    "pandas",
]


def imported(name):
    """All modules that a module's source imports, wherever in it."""
    path = ROOT / name.replace(".", "/")
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_needs_no_command_line_no_export_and_no_other_architecture(name):
    others = [f"lit_models.{other}" for other in ARCHITECTURES if other != name]
    for module in imported(f"lit_models.{name}"):
        assert not module.startswith(("lit_models.cli", "lit_models.export", "datamodules", "rl.", *others))


def test_models_need_neither_data_modules_nor_agents():
    for path in (ROOT / "lit_models").rglob("*.py"):
        if "cli" in path.parts:  # which brings the three packages together
            continue
        for node in ast.parse(path.read_text()).body:  # but for imports within a function
            if isinstance(node, ast.ImportFrom):
                assert not node.module.startswith(("datamodules", "rl")), path


@pytest.mark.slow
def test_importing_prints_nothing_and_needs_no_extra():
    script = f"""
import importlib, sys
for name in {EXTRAS}:
    sys.modules[name] = None
for name in {MODULES}:
    importlib.import_module(name)
print("all of them", file=sys.stderr)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("", "all of them\n")


@pytest.fixture
def brings():
    """Imports a module as if nothing of this project had been imported, and returns all of it that comes along."""

    def own():
        return {name for name in sys.modules if name.partition(".")[0] in ("lit_models", "datamodules", "rl")}

    before = {name: sys.modules[name] for name in own()}

    def imports(name):
        for other in own():
            del sys.modules[other]
        importlib.import_module(name)
        return own()

    yield imports
    for name in own():
        del sys.modules[name]
    sys.modules.update(before)


def test_importing_one_architecture_imports_no_other(brings):
    found = brings("lit_models.cnn")
    assert "lit_models.classifier" in found
    assert not found & {f"lit_models.{name}" for name in ("net", "rnn", "rnn_classifier", "export", "cli")}


def test_importing_agents_imports_no_other_model(brings):
    found = brings("rl.dqn")
    assert "rl.agent" in found
    others = ("net", "cnn", "classifier", "rnn", "rnn_classifier", "faces", "cli", "training.plots", "training.figures")
    assert not found & {"datamodules", *(f"lit_models.{name}" for name in others)}
