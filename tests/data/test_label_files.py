"""Label files as they are published: columns, separators, names without suffix, one-hot, COCO."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.refusal import refused
from helpers.trees import png, write

from ltdd.data.long_tailed_data import load_data

IDS = [f"ISIC_{n:07}" for n in range(8)]


@pytest.fixture
def isic(tmp_path: Path) -> Path:
    """Eight images in two folders."""
    return write(tmp_path / "isic", [f"part_{n % 2}/{name}.jpg" for n, name in enumerate(IDS)])


def table(path: Path, *rows: str) -> str:
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def labels(spec: str) -> dict[str, int]:
    """Return how many images there are of every class, held out or not."""
    data = load_data(spec)
    tested = [data.test_labels.tolist().count(n) for n in range(len(data.class_names))]
    return {
        name: count + more
        for name, count, more in zip(data.class_names, data.counts, tested, strict=True)
    }


PUBLISHED = {
    "HAM10000": (
        "lesion_id,image_id,dx,dx_type,age,sex,localization",
        lambda n: f"HAM_{n},{IDS[n]},{'nv' if n < 5 else 'mel'},histo,80.0,male,scalp",
        "image_id and dx",
    ),
    "APTOS": ("id_code,diagnosis", lambda n: f"{IDS[n]},{n // 5}", "id_code and diagnosis"),
    "EyePACS": ("image,level", lambda n: f"{IDS[n]},{n // 5}.0", "image and level"),
    "iWildCam": (
        "id,file_name,category_id",
        lambda n: f"{n},{IDS[n]}.jpg,{n // 5}",
        "file_name and category_id",
    ),
    "birds": (
        "class id,filepaths,labels",
        lambda n: f"{n // 5}.0,part_{n % 2}/{IDS[n]}.jpg,{'crow' if n < 5 else 'wren'}",
        "filepaths and labels",
    ),
    "swapped": ("Label,Path", lambda n: f"{n // 5},part_{n % 2}/{IDS[n]}.jpg", ""),
    "Windows": ("path,label", lambda n: f"part_{n % 2}\\{IDS[n]}.jpg,{n // 5}", ""),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_published_tables_are_read(name: str, separator: str, isic: Path) -> None:
    header, row, columns = PUBLISHED[name]
    rows = [line.replace(",", separator) for line in (header, *map(row, range(8)))]
    path = table(isic / "labels.csv", *rows)
    assert sorted(labels(f"list:{path}").values()) == [3, 5]
    notes = [note for note in load_data(f"list:{path}").notes if note.startswith("columns")]
    assert notes == ([f"columns {columns} of {path} are read"] if columns else [])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_may_be_named(separator: str, isic: Path, tmp_path: Path) -> None:
    rows = ["photo,label,path,Kind", *(f"{IDS[n]},x,y,{'ab'[n % 2]}" for n in range(8))]
    path = table(tmp_path / "all.csv", *(row.replace(",", separator) for row in rows))
    for option in ("[columns=photo,kind]", "[columns=Photo, Kind]"):
        assert labels(f"list:{path}@{isic}{option}") == {"a": 4, "b": 4}
        assert labels(f"list:{path}{option}@{isic}") == {"a": 4, "b": 4}
    refused(f"list:{path}@{isic}[columns=photo]", "at least 2 classes", "only x")
    refused(f"list:{path}[columns=photo,sex]", "a column 'sex' in", "photo, label, path, kind")
    refused(f"list:{path}[columns=photo,kind,path]", "expected [columns=IMAGE,LABEL]")
    refused(f"list:{path}[columns=]", "expected [columns=IMAGE,LABEL]")
    refused(f"list:{path}[levels=2]", "expected [columns=IMAGE,LABEL] behind list:")


@pytest.mark.parametrize(
    "header", ["photo,kind", "image,sex", "class,target,image", "image,img,label", "a;b", "id_code"]
)
def test_columns_that_could_be_others_are_asked_for(header: str, isic: Path) -> None:
    cells = ",".join("0" * (header.count(",") + 1)).replace(",", ";" if ";" in header else ",")
    path = table(isic / "odd.csv", header, cells, cells)
    got = header.replace(";", ",").replace(",", ", ")
    asked = f"'list:{path}[columns=IMAGE,LABEL]'"
    refused(f"list:{path}", "expected columns path and label", f"got {got}", asked)


def test_tables_without_a_header(isic: Path) -> None:
    names = [f"part_{n % 2}/{IDS[n]}.jpg" for n in range(8)]
    for separator in ",;\t":
        path = table(isic / "a.csv", *(f"{name}{separator}{name[5]}" for name in names))
        assert labels(f"list:{path}") == {"0": 4, "1": 4}
        path = table(isic / "b.csv", *(f"{name[5]}{separator}{name}" for name in names))
        assert labels(f"list:{path}") == {"0": 4, "1": 4}


def test_one_file_must_be_meant(isic: Path, tmp_path: Path) -> None:
    path = table(isic / "all.csv", "image_id,dx", *(f"{IDS[n]},{n % 2}" for n in range(8)))
    before = load_data(f"list:{path}").content_sha256
    # As one published archive: the same folder twice.
    shutil.copytree(isic / "part_0", isic / "copy_0")
    assert load_data(f"list:{path}").content_sha256 == before
    (isic / f"copy_0/{IDS[2]}.jpg").write_bytes(png(99))
    refused(
        f"list:{path}",
        f"{path} line 4: expected one file {IDS[2]} below {isic}",
        str(isic / "copy_0"),
        str(isic / "part_0"),
    )
    shutil.rmtree(isic / "copy_0")
    for litter in (f"@eaDir/{IDS[2]}.jpg", f"masks/{IDS[2]}.txt"):
        write(isic, [litter])
        assert load_data(f"list:{path}").content_sha256 == before
    (isic / f"part_0/{IDS[2]}.jpg").unlink()
    refused(f"list:{path}", f"{path} line 4: expected an image at", "@ROOT behind the list")
    left_out = load_data(f"list:{path}", on_bad_image="skip").left_out
    assert [IDS[2] in text for text in left_out] == [True]


def test_names_of_folders_are_part_of_a_name(isic: Path) -> None:
    write(isic, ["a/deep/x.png", "b/deep/x.png", "b/deep/y.png", "c/bdeep/y.png"])
    rows = ["path,label", "a/deep/x,0", "b/deep/x,1", "deep/y,1", "./a/deep/x.png,0"]
    assert labels(f"list:{table(isic / 'all.csv', *rows)}") == {"0": 2, "1": 2}


def test_images_of_a_list_may_be_in_an_archive(isic: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", isic)
    rows = ["image_id,dx", *(f"{IDS[n]},{n % 2}" for n in range(8))]
    spec = f"list:{table(tmp_path / 'all.csv', *rows)}@{archive}"
    assert labels(spec) == {"0": 4, "1": 4}
    table(tmp_path / "all.csv", *rows, "ISIC_9,0")
    refused(spec, "line 10: expected an image at", f"{archive}/ISIC_9")


def test_one_hot_columns_are_classes(isic: Path) -> None:
    rows = [f"{IDS[n]},{float(n % 2 == 0)},{float(n % 2)},0.0" for n in range(8)]
    path = table(isic / "truth.csv", "image,MEL,NV,UNK", *rows)
    assert labels(f"list:{path}") == {"MEL": 4, "NV": 4}
    notes = load_data(f"list:{path}").notes
    assert f"no image of {path} is of class UNK: left out" in notes
    for last, said in (("1,1,0", "got MEL and NV"), ("0,0,0", "got none")):
        table(isic / "truth.csv", "image,MEL,NV,UNK", *rows, f"{IDS[0]},{last}")
        refused(f"list:{path}", "line 10: expected one class of", said, "several classes")
    table(isic / "truth.csv", "image,MEL,NV,UNK", *rows, f"{IDS[0]},0.5,0.5,0")
    refused(f"list:{path}", "expected columns path and label", "image, mel, nv, unk")


def test_two_lists_keep_to_their_parts(isic: Path) -> None:
    rows = [f"{IDS[n]},{n % 2},{'train' if n < 4 else 'test'}" for n in range(8)]
    path = table(isic / "all.csv", "image,label,split", *rows)
    refused(f"list:{path},{path}", "line 6: expected split train in this list, got 'test'")
    train = table(isic / "train.csv", "image,label,split", *rows[:4])
    test = table(isic / "test.csv", "image,label,split", *rows[4:])
    assert len(load_data(f"list:{train},{test}").test_labels) == 4


def coco(**changes: Any) -> str:
    content = {
        "images": [{"id": n, "file_name": f"part_{n % 2}/{IDS[n]}.jpg"} for n in range(8)],
        "annotations": [{"image_id": n, "category_id": 3 + n % 2} for n in range(8)],
        "categories": [{"id": 3, "name": "fox"}, {"id": 4, "name": "hen"}],
    }
    return json.dumps(content | changes)


def test_coco_files_are_read(isic: Path) -> None:
    path = isic / "train.json"
    path.write_text(coco())
    assert labels(f"list:{path}") == {"fox": 4, "hen": 4}
    assert len(load_data(f"list:{path},{path}@{isic}").test_labels) == 8
    boxes = [{"image_id": n // 2, "category_id": 3 + n // 2 % 2} for n in range(14)]
    path.write_text(coco(annotations=boxes))
    assert labels(f"list:{path}") == {"fox": 4, "hen": 3}
    note = f"images of {path} without an annotation are passed over: 1"
    assert note in load_data(f"list:{path}").notes
    path.write_text(coco(categories=[]))
    assert labels(f"list:{path}") == {"3": 4, "4": 4}
    path.write_text(coco(categories=[{"id": 3, "name": "fox"}, {"id": 4, "name": "fox"}]))
    assert labels(f"list:{path}") == {"3": 4, "4": 4}


BAD_JSON = {
    "several categories": (
        coco(annotations=[{"image_id": 1, "category_id": n} for n in (3, 4)]),
        ["one category for every image of", "'fox' and 'hen' for part_1/ISIC_0000001.jpg"],
    ),
    "no annotations": (json.dumps({"images": []}), ["got no 'annotations'", "path and label"]),
    "no images": (coco(images=[]), ["image 0 of an annotation", "got none"]),
    "nothing annotated": (coco(annotations=[]), ["expected images in", "got none"]),
    "another category": (
        coco(annotations=[{"image_id": 1, "category_id": 9}]),
        ["category 9 of an annotation in"],
    ),
    "a list": ("[1, 2]", ["COCO's images, annotations and categories", "got list"]),
    "pairs": ('{"a.png": "cat"}', ["got no 'images'"]),
    "an id that is a list": (
        coco(annotations=[{"image_id": [1], "category_id": 3}]),
        ["COCO's images"],
    ),
    "half": (coco()[:90], ["expected JSON in"]),
    "lines": ('{"path": "a", "label": 0}\n{"path": "b", "label": 1}', ["expected JSON in"]),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json_is_refused(name: str, isic: Path) -> None:
    content, said = BAD_JSON[name]
    (isic / "bad.json").write_text(content)
    refused(f"list:{isic / 'bad.json'}", str(isic / "bad.json"), *said)
    refused(f"list:{isic / 'bad.json'}[columns=a,b]", "which is JSON")
