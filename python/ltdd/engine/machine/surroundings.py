"""Bear what may be missing: a home folder, a terminal, a disk that maps files, other processes."""

from __future__ import annotations

import errno
import io
import mmap
import os
import sys
from pathlib import Path

from ltdd.errors import UserError

NO_MAPS = (errno.ENODEV, errno.ENOSYS, errno.EOPNOTSUPP)
"""How a system says that a disk cannot map files."""


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user gave, with ``~`` as the home folder, where there is one.

    A shell expands it only at the start of a word, so not in ``--out=~/run``.

    Raises:
        UserError: nobody has the home folder that the path starts from.
    """
    expanded = Path(os.path.expanduser(path))
    start = expanded.parts[0] if expanded.parts else ""
    if start.startswith("~") and not os.path.lexists(start):
        raise UserError(f"expected a path, got {str(path)!r}; {start} is nobody's home folder")
    return expanded


def can_be_mapped(path: Path) -> bool:
    """Return whether the disk of a file gives access to it as memory; some FUSE disks do not.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    with path.open("rb") as file:
        try:
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).close()
        except ValueError:  # an empty file
            return True
        except OSError as error:
            return error.errno not in NO_MAPS
    return True


def shown_on_terminal() -> bool:
    """Return whether somebody watches stderr; programs without a console have none at all."""
    return sys.stderr is not None and sys.stderr.isatty()


def processes() -> tuple[int, int]:
    """Return number of this process and how many torchrun, or something like it, started."""
    if "RANK" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE") or 1)


def prepare_streams() -> None:
    """Let stdout and stderr take any text: where they are missing, and in any encoding.

    Characters that a stream cannot hold, such as those of class names, are written as escapes.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
