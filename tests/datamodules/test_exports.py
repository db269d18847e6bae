from pathlib import Path

import datamodules

CLASSES = {name: getattr(datamodules, name) for name in datamodules.__all__}


def test_exports_are_classes_of_their_modules():
    stub = Path(datamodules.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    lines = [f"from {kind.__module__} import {name} as {name}" for name, kind in CLASSES.items()]
    assert sorted(stub.splitlines()) == sorted(lines)


def test_data_modules_do_not_import_each_other():
    modules = [kind.__module__ for name, kind in CLASSES.items() if name.endswith("DataModule")]
    for path in Path(datamodules.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not [module for module in modules if f"from {module} import" in text]
