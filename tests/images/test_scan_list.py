"""Lists of scans: folders, globs and CSVs, and refused lists."""

from pathlib import Path

import pytest

from runtime.errors import InputError
from runtime.images.scan_list import Scan, read_scan_list


@pytest.fixture
def folder(tmp_path):
    """Files of these names; a list is read without opening them."""
    for name in ("b.nii.gz", "a.nii.gz", "c.mgz", "a_labels.nii", "notes.txt", ".half.nii.gz"):
        (tmp_path / name).touch()
    return tmp_path


def write_csv(folder: Path, text: str, encoding: str = "utf-8") -> str:
    (folder / "list.csv").write_text(text, encoding=encoding)
    return str(folder / "list.csv")


def test_a_folder_is_all_its_volumes_sorted_and_no_companion_is_guessed(folder):
    names = ("a.nii.gz", "a_labels.nii", "b.nii.gz", "c.mgz")
    assert read_scan_list("data", str(folder)) == tuple(Scan(folder / name) for name in names)


def test_a_glob_chooses(folder):
    assert read_scan_list("data", str(folder / "*.nii.gz")) == (Scan(folder / "a.nii.gz"), Scan(folder / "b.nii.gz"))


def test_a_csv_keeps_its_order_and_names_the_companions(folder):
    text = f"image,labels,mask\nb.nii.gz,,\n{folder}/a.nii.gz,a_labels.nii,c.mgz\nc.mgz,,b.nii.gz\n"
    first, second, third = read_scan_list("data", write_csv(folder, text))
    assert first == Scan(folder / "b.nii.gz")
    assert second == Scan(folder / "a.nii.gz", folder / "a_labels.nii", folder / "c.mgz")
    assert third == Scan(folder / "c.mgz", None, folder / "b.nii.gz")
    assert second.files() == (second.image, second.labels, second.mask) and first.files() == (first.image,)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_columns_in_any_order_others_ignored_short_lines_and_a_byte_order_mark_allowed(folder, encoding):
    text = "age,mask,image\n31,c.mgz,a.nii.gz\n\n,,b.nii.gz\n"
    scans = read_scan_list("data", write_csv(folder, text, encoding))
    assert scans == (Scan(folder / "a.nii.gz", mask=folder / "c.mgz"), Scan(folder / "b.nii.gz"))


def test_blanks_and_capitals_in_the_header_lose_no_labels(folder):
    scans = read_scan_list("data", write_csv(folder, "Image, Labels\na.nii.gz, a_labels.nii\n"))
    assert scans == (Scan(folder / "a.nii.gz", folder / "a_labels.nii"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image\n", "data: .*list.csv holds no .nii.gz .nii .mgz .mgh .nrrd .mha file; expected a folder, glob or CSV"),
        ("", "is empty, expected a CSV with a header such as image,labels"),
        ("file,labels\na.nii.gz,\n", "has the columns file, labels; expected image"),
        ("image,labels\na.nii.gz,\n\n,a_labels.nii\n", "line 4 names no image; fill or remove it"),
        ("image,mask\na.nii.gz,gone.nii\n", "data, listed in .*list.csv: .*gone.nii does not exist"),
        ("image\n..\n", "is not a file but a folder"),
        ("image,label\na.nii.gz,a_labels.nii\n", "has the column label, expected labels; rename it"),
    ],
)
def test_a_csv_that_cannot_be_used_is_one_line(folder, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_scan_list("data", write_csv(folder, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["nowhere", "nowhere.csv", "nowhere/*.nii", "x" * 300, ""])
def test_nothing_there_is_one_line_that_names_the_option(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^scans: "):
        read_scan_list("scans", text)


def test_bytes_that_are_no_text_are_refused(folder):
    (folder / "list.csv").write_bytes(b"image\n\xff\xfe\n")
    with pytest.raises(InputError, match=r"cannot read .*list\.csv"):
        read_scan_list("data", str(folder / "list.csv"))
