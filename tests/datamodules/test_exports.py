from pathlib import Path

import datamodules
from datamodules import _MODULES


def test_exports_are_classes_of_their_modules():
    for name, module in _MODULES.items():
        assert getattr(datamodules, name).__module__ == module


def test_data_modules_do_not_import_each_other():
    modules = [module for name, module in _MODULES.items() if name.endswith("DataModule")]
    for path in Path(datamodules.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not [module for module in modules if f"from {module} import" in text]
