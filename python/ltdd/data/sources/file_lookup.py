"""Files by what a label file calls them: a path, a name, or a name without its suffix."""

from __future__ import annotations

import filecmp
import os
from functools import cached_property
from pathlib import Path

from ltdd.data.reading.image_files import Folder, files_below
from ltdd.data.reading.litter import is_no_image
from ltdd.errors import UserError


class FileLookup:
    """Finds files below a folder, which is searched when the first is not where its path says."""

    def __init__(self, root: Folder) -> None:
        self.root = root

    def find(self, text: str, where: str) -> str | None:
        """Return the path of an image; None if there is none.

        Args:
            text: as a label file has it: relative to the root or absolute, with separators of any
                system, or only the name or the stem of a file in some folder below the root.
            where: line of the label file, for messages.

        Raises:
            UserError: several different files are meant.
        """
        path = self.path_of(text)
        if os.path.exists(path) and not os.path.isdir(path):
            return path
        *above, name = text.replace("\\", "/").split("/")
        if ".." in above:
            return None
        ending = "".join(f"/{part}" for part in above if part != ".")
        found = [path for path in self._by_name.get(name, []) if self._above(path).endswith(ending)]
        for other in found[1:]:
            # Some published archives hold a folder twice; then any copy will do.
            if not filecmp.cmp(found[0], other, shallow=False):
                shown = " and ".join(map(self.root.shown_path, (found[0], other)))
                raise UserError(
                    f"{where}: expected one file {text} below {self.root}, got {shown}; write the "
                    "path from there"
                )
        return found[0] if found else None

    def path_of(self, text: str) -> str:
        """Return the path that a text is by itself."""
        return os.path.join(self.root.path, os.path.expanduser(text))

    def shown(self, text: str) -> str:
        """Return what messages call that path."""
        return self.root.shown_path(self.path_of(text))

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Map names with and without their last suffix to paths."""
        found: dict[str, list[str]] = {}
        for path in sorted(files_below(self.root)):
            if not is_no_image(path):
                name = os.path.basename(path)
                for key in {name, Path(name).stem}:
                    found.setdefault(key, []).append(path)
        return found

    def _above(self, path: str) -> str:
        """Return the folders from the root to a file, each behind a slash."""
        below = os.path.dirname(path).removeprefix(str(self.root.path))
        return "/" + below.replace(os.sep, "/").strip("/")
