"""Files that are either written as a whole or left as they were."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path, way_out: str) -> Iterator[Path]:
    """A place beside `path` to write to, renamed to it at the end; removed, and `path` left alone, after an error.

    Its folder is made if needed. Where it can't be written, an OSError says what the user can do: the `way_out`.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror or error}): {way_out}") from error
    finally:
        with contextlib.suppress(OSError):  # above it is a file, for one
            partial.unlink()
