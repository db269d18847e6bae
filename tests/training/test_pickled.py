"""What a refused checkpoint holds."""

import pickle
import zipfile
from pathlib import Path

from lit_models.training.pickled import find_object


def checkpoint(folder, content, protocol=2):
    path = folder / "model.ckpt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


def test_the_first_object_is_named_by_its_keys(tmp_path):
    content = {"epoch": 3, "hyper_parameters": {"names": ["a", {"where": Path("here")}], "later": Path("there")}}
    assert find_object(checkpoint(tmp_path, content)) == "hyper_parameters.names.1.where is a pathlib.PosixPath"
    assert find_object(checkpoint(tmp_path, {"epoch": 3})) is None


def test_nothing_of_it_is_called(tmp_path):
    made = tmp_path / "made"
    script = f"cos\nmkdir\n(V{made}\ntR.".encode()
    assert "os.mkdir" in find_object(checkpoint(tmp_path, script))
    assert not made.exists()


def test_what_is_damaged_or_nested_without_end_is_given_up(tmp_path):
    assert find_object(checkpoint(tmp_path, b"\x80\x02}q")) is None
    (tmp_path / "none.ckpt").write_bytes(b"nothing")
    assert find_object(tmp_path / "none.ckpt") is None
    nested = []
    for _ in range(60):
        nested = [nested] * 10
    assert find_object(checkpoint(tmp_path, {"a": nested, "b": Path("here")})) == "b is a pathlib.PosixPath"
