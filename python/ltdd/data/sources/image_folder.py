"""``imagefolder:PATH[levels=N]``: a folder of images for every class, possibly in an archive."""

from __future__ import annotations

from collections import Counter

from ltdd.config import OnBadImage
from ltdd.data.reading.image_files import Files, Folder, files_below, list_files
from ltdd.data.reading.image_source import Parts
from ltdd.data.reading.litter import has_image_suffix, passed_over
from ltdd.data.sources.annotated_folder import annotated_split, has_annotations
from ltdd.data.sources.other_forms import refuse_other_forms
from ltdd.data.sources.spec import Spec, given_folder
from ltdd.data.splitting.parts import Origin, Split, parts_of
from ltdd.data.splitting.splits import choose_splits, split_kind
from ltdd.engine.machine.surroundings import user_path
from ltdd.errors import UserError


def image_folder(spec: Spec, on_bad_image: OnBadImage) -> Parts:
    """List ``PATH/train/<class>/`` and ``PATH/test/<class>/``, or ``PATH/<class>/`` alone.

    Raises:
        UserError: folders are missing, or differ in their classes.
    """
    given = given_folder(user_path(spec.place))
    refuse_other_forms(given)
    root = _without_wrappers(given, spec.levels or 1)
    splits = _split_folders(root)
    if not splits:
        train, passed = _list_split(root, given, spec.levels)
        instead = f"{root.inside('train')} and {root.inside('test')}"
        origin = Origin(str(root), instead, passed_over(passed) + _loose(root))
        return parts_of(train, None, origin, on_bad_image, "folders")
    chosen = choose_splits(_with_labels(splits), str(root))
    used = [folder for folder in splits if folder.path.name in (chosen.train, chosen.test)]
    listed = {folder.path.name: _list_split(folder, given, spec.levels) for folder in used}
    notes = chosen.notes + passed_over(sum((n for _, n in listed.values()), Counter()))
    notes += tuple(note for folder in used for note in _loose(folder))
    train = listed[chosen.train][0]
    test = listed[chosen.test][0] if chosen.test else None
    origin = Origin(str(root), str(root.inside("test")), notes)
    return parts_of(train, test, origin, on_bad_image, "folders")


def _without_wrappers(root: Folder, levels: int) -> Folder:
    """Enter an only folder that holds the class folders: archives often have two around them."""
    while len(root.folders) == 1 and not root.images:
        inner = root.folders[0]
        if split_kind(inner.path.name) or inner.images or not _reaches(inner, levels):
            break
        root = inner
    return root


def _reaches(folder: Folder, levels: int) -> bool:
    """Return whether there are folders so many levels below."""
    return levels == 0 or any(_reaches(inner, levels - 1) for inner in folder.folders)


def _split_folders(root: Folder) -> list[Folder]:
    """Return the folders of `root` that hold images if they are splits, none if they are classes.

    A class may be called train: a split is a folder of that name that holds folders itself.
    """
    named = [folder for folder in root.folders if split_kind(folder.path.name)]
    filled = [folder for folder in named if folder.folders or has_annotations(folder)]
    others = [f for f in root.folders if f not in named and _holds_images(f)]
    if not filled:
        if named and not others:
            raise UserError(
                f"expected class folders in {named[0]}, got files; where a file names the classes "
                f"of images, give list:FILE@{root}"
            )
        return []
    classes = [folder for folder in others if folder.images]
    if len(filled) == 1 and classes:
        missing = "test or val" if split_kind(filled[0].path.name) == "train" else "train"
        raise UserError(
            f"expected {root.inside(missing)} with class folders beside {filled[0]}, got "
            f"{classes[0]}; to hold out a test part of one folder, give that folder"
        )
    return sorted(named + others, key=lambda folder: folder.path.name)


def _holds_images(folder: Folder) -> bool:
    return any(map(has_image_suffix, files_below(folder)))


def _with_labels(splits: list[Folder]) -> dict[str, bool]:
    """Say which splits have labels: an only folder of another name than a class is none."""
    classes = {
        inner.path.name
        for folder in splits
        if split_kind(folder.path.name) == "train"
        for inner in folder.folders
    }
    labelled = {}
    for folder in splits:
        names = {inner.path.name for inner in folder.folders}
        unknown = len(names) == 1 and len(classes) > 1 and not names & classes
        labelled[folder.path.name] = has_annotations(folder) or (bool(names) and not unknown)
    return labelled


def _list_split(folder: Folder, given: Folder, levels: int | None) -> tuple[Split, Counter[str]]:
    """List the images of class folders, and the suffixes of files that are none."""
    if has_annotations(folder):
        return annotated_split(folder)
    if not folder.folders and folder.images:
        raise UserError(
            f"expected one folder per class in {folder}, got no folder but files; where a file "
            f"names the classes of images, give list:FILE@{given}"
        )
    if levels is None:
        _check_levels(folder, given)
    listed = list_files(folder, levels or 1)
    files = Files(listed.paths, folder)
    return Split(files, listed.labels, listed.class_names, str(folder)), listed.passed_over


def _check_levels(folder: Folder, given: Folder) -> None:
    """Refuse to guess which of several levels of folders are the classes."""
    below = {top.path.name: [f.path.name for f in top.folders] for top in folder.folders}
    for top, names in below.items():
        kinds = {split_kind(name): name for name in names}
        if "train" in kinds and len(kinds.keys() & {"test", "val"}):
            inner = kinds["train"]
            raise UserError(
                f"expected splits above the classes, as {folder.inside(inner).inside(top)}, got "
                f"{folder.inside(top).inside(inner)}"
            )
    if not all(below.values()) or any(top.images for top in folder.folders):
        return
    if len({tuple(names) for names in below.values()}) == 1 and len(names) == 1:
        return  # <class>/images/ everywhere
    top, names = next(iter(below.items()))
    raise UserError(
        f"expected images in the class folders of {folder}, got only folders, such as "
        f"{top}/{names[0]}; if these are the classes, give 'imagefolder:{given}[levels=2]', if "
        f"each class is a whole folder such as {top}, [levels=1]"
    )


def _loose(folder: Folder) -> tuple[str, ...]:
    count = len(folder.images)
    files = "1 image" if count == 1 else f"{count:,} images"
    return (f"passed over {files} of no class, directly in {folder}",) if count else ()
