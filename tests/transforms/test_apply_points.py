"""`apply --points`: landmarks are mapped like the image, in every frame, and nothing else in their file changes."""

import csv
import json

import numpy as np
import pytest

from runtime.geometry.transform import NumericalInverse
from tests.known_pair import SHIFT, bend, done, refused, run, write_plain_affine

HERE = np.array([[2.0, -10.5, 18.25], [7.0, -14.0, 22.0], [0.0, -9.0, 24.5]])  # RAS mm, in the scan


def write(path, points, header="x,y,z"):
    np.savetxt(path, points, delimiter=",", header=header, comments="", fmt="%.17g")
    return path


def read(path) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)


def test_points_go_the_way_the_image_goes(shifted, tmp_path):
    """A point y of the scan lies at y - shift in the reference, where `apply --image` writes the scan's value at y."""
    points, out = write(tmp_path / "points.csv", HERE), tmp_path / "out.csv"
    printed = done("apply", "--points", points, "-t", shifted.warp, "--output", out, "--points-in", "ras")
    assert read(out) == pytest.approx(HERE - SHIFT, abs=1e-3)
    assert f"wrote {out}: 3 points, ras" in printed


def test_the_inverse_is_solved_for_each_point(bent, tmp_path):
    """The map takes the found points back to the given ones; no sampled inverse is as accurate."""
    points, out = write(tmp_path / "points.csv", HERE), tmp_path / "out.csv"
    done("apply", "--points", points, "-t", bent.warp, "--output", out, "--points-in", "ras")
    assert bend(read(out)) == pytest.approx(HERE, abs=0.02)


def test_through_an_inverted_link_no_solving_is_needed(bent, tmp_path):
    points, out = write(tmp_path / "points.csv", HERE), tmp_path / "out.csv"
    printed = done("apply", "--points", points, "-t", f"{bent.warp},inverse", "--output", out, "--points-in", "ras")
    assert read(out) == pytest.approx(bend(HERE), abs=0.02)
    assert "within" not in printed


def test_ras_lps_and_voxels_are_the_same_points(bent, tmp_path):
    """Voxels are the scan's before, the reference's after; the metadata in the file knows both grids."""
    frames = {
        "ras": (HERE, lambda found: found),
        "lps": (HERE * [-1, -1, 1], lambda found: found * [-1, -1, 1]),
        "voxels": (bent.scan_grid.to_voxels(HERE), bent.grid.to_physical),
    }
    found = {}
    for frame, (given, physical) in frames.items():
        points, out = write(tmp_path / f"{frame}.csv", given), tmp_path / f"{frame}_out.csv"
        done("apply", "--points", points, "-t", bent.warp, "--output", out, "--points-in", frame)
        found[frame] = physical(read(out))
    assert found["lps"] == pytest.approx(found["ras"], abs=1e-6)
    assert found["voxels"] == pytest.approx(found["ras"], abs=1e-5)  # headers hold single precision


@pytest.mark.parametrize(("header", "sign"), [("R,A,S", 1), ("l,p,s", [-1, -1, 1])])
def test_names_of_columns_tell_the_frame(shifted, tmp_path, header, sign):
    points, out = write(tmp_path / "points.csv", HERE * sign, header), tmp_path / "out.csv"
    done("apply", "--points", points, "-t", shifted.warp, "--output", out)
    assert read(out) * sign == pytest.approx(HERE - SHIFT, abs=1e-3)
    assert out.read_text().startswith(header + "\n")


def test_voxels_of_a_named_scan(shifted, tmp_path):
    """An affine in plain text knows no grid: the scan's and the reference's have to be named."""
    matrix = np.eye(4)
    matrix[:3, 3] = SHIFT
    affine = write_plain_affine(tmp_path / "shift.txt", matrix)
    points = write(tmp_path / "points.csv", shifted.scan_grid.to_voxels(HERE), "i,j,k")
    arguments = ("--points", points, "-t", affine, "--output", tmp_path / "out.csv")
    assert "--reference: is needed" in refused("apply", *arguments)
    arguments += ("--reference", shifted.reference)
    assert "--scan: is needed for voxels" in refused("apply", *arguments)
    done("apply", *arguments, "--scan", shifted.scan)
    assert shifted.grid.to_physical(read(tmp_path / "out.csv")) == pytest.approx(HERE - SHIFT, abs=1e-6)


def test_other_columns_and_the_order_stay(shifted, tmp_path):
    """As ANTs writes them, with a byte order mark, blanks and a line without a point."""
    points, out = tmp_path / "points.csv", tmp_path / "out.csv"
    points.write_text('\ufeffname, X ,y,z,t,label\n"left, front",1,2,3,0,7\n\nback,4.5,5,6,0,08\n', encoding="utf-8")
    done("apply", "--points", points, "-t", shifted.warp, "--output", out, "--points-in", "lps")
    with out.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["name", " X ", "y", "z", "t", "label"]
    assert [(row[0], *row[4:]) for row in rows] == [("left, front", "0", "7"), ("back", "0", "08")]
    found = np.array([row[1:4] for row in rows], float)
    assert found == pytest.approx(np.array([[1, 2, 3], [4.5, 5, 6]]) - SHIFT * [-1, -1, 1], abs=1e-3)


def test_numbers_are_as_precise_as_the_map(shifted, tmp_path):
    affine = write_plain_affine(tmp_path / "identity.txt", np.eye(4))
    text = "x,y,z\n0.1,-123.456789,1e-05\n-0.0,33.3333333,2\n"
    (tmp_path / "points.csv").write_text(text)
    arguments = ("-t", affine, "--output", tmp_path / "out.csv", "--points-in", "lps")
    done("apply", "--points", tmp_path / "points.csv", *arguments)
    assert (tmp_path / "out.csv").read_text() == text.replace("-0.0", "0.0").replace(",2\n", ",2.0\n")


def test_a_point_without_an_inverse_is_named_left_empty_and_shows_in_the_exit_code(bent, tmp_path, monkeypatch):
    solve = NumericalInverse.solve

    def fails_for_the_second(self, points):
        found, residual = solve(self, points)
        residual[1] = 3.0
        return found, residual

    monkeypatch.setattr(NumericalInverse, "solve", fails_for_the_second)
    points, out = write(tmp_path / "points.csv", HERE), tmp_path / "out.csv"
    result = run("apply", "--points", points, "-t", bent.warp, "--output", out, "--points-in", "ras")
    assert result.exit_code == 1
    assert "Error: 1 of 3 points could not be inverted" in result.stderr and "number 2" in result.stderr
    lines = out.read_text().splitlines()
    assert len(lines) == 4 and lines[2] == ",,"
    assert bend(np.array([lines[1].split(","), lines[3].split(",")], float)) == pytest.approx(HERE[[0, 2]], abs=0.02)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty, expected a CSV with a header such as x,y,z"),
        ("x,y,z\n", "holds no points"),
        ("1,2,3\n4,5,6\n", "has no columns x,y,z (or r,a,s, l,p,s, i,j,k) in its first line, '1,2,3'"),
        ("x y z\n1 2 3\n", "expected a CSV with a header"),
        ("a,b\n1,2\n", "has no columns x,y,z"),
        ("x,y,z,x\n1,2,3,4\n", "has the column x twice"),
        ("x,y,z\n1,2,3\n1,nan,3\n", "line 3: y is 'nan', expected a number"),
        ("x,y,z\n1,2\n", "line 2: z is '', expected a number"),
        ("x,y,z\n1,,3\n", "line 2: y is '', expected a number"),
        ("x,y,z\n1,2,inf\n", "line 2: z is 'inf', expected a number"),
        ("x,y,z\n1,2,three\n", "line 2: z is 'three', expected a number"),
        ("r,a,s\n1,2,3\n", "has columns r,a,s, which are ras, but --points-in says lps"),
    ],
)
def test_what_is_wrong_with_a_file_of_points_is_one_line(shifted, tmp_path, text, message):
    (tmp_path / "points.csv").write_text(text)
    arguments = ("-t", shifted.warp, "--output", tmp_path / "out.csv", "--points-in", "lps")
    line = refused("apply", "--points", tmp_path / "points.csv", *arguments)
    assert line.startswith(f"Error: --points: {tmp_path}/points.csv") and message in line
    assert not (tmp_path / "out.csv").exists()


def test_a_file_that_is_no_text(shifted, tmp_path):
    (tmp_path / "points.csv").write_bytes(b"\xff\xfe\x00x,y,z")
    arguments = ("-t", shifted.warp, "--output", tmp_path / "out.csv", "--points-in", "lps")
    assert "cannot read" in refused("apply", "--points", tmp_path / "points.csv", *arguments)


def test_x_y_z_do_not_say_what_they_are(shifted, tmp_path):
    points = write(tmp_path / "points.csv", HERE)
    arguments = ("--points", points, "-t", shifted.warp, "--output", tmp_path / "out.csv")
    assert "name their frame: --points-in ras, lps or voxels" in refused("apply", *arguments)


MARKUPS = {
    "@schema": "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/",
    "markups": [
        {
            "type": "Fiducial",
            "coordinateSystem": "LPS",
            "controlPoints": [
                {"id": str(n), "label": f"F-{n}", "position": list(point * [-1, -1, 1]), "locked": n == 1}
                for n, point in enumerate(HERE)
            ],
        }
    ],
}


class TestSlicersFiles:
    """Both kinds state their frame; everything but the positions is preserved."""

    def test_markups(self, shifted, tmp_path):
        points, out = tmp_path / "points.mrk.json", tmp_path / "out.mrk.json"
        points.write_text(json.dumps(MARKUPS))
        printed = done("apply", "--points", points, "-t", shifted.warp, "--output", out)
        found, expected = json.loads(out.read_text()), json.loads(points.read_text())
        positions = [point.pop("position") for point in found["markups"][0]["controlPoints"]]
        assert np.array(positions) * [-1, -1, 1] == pytest.approx(HERE - SHIFT, abs=1e-3)
        for point in expected["markups"][0]["controlPoints"]:
            point.pop("position")
        assert found == expected and "3 points, lps" in printed

    @pytest.mark.parametrize(("system", "sign"), [("LPS", (-1, -1, 1)), ("1", (-1, -1, 1)), ("0", (1, 1, 1))])
    def test_fcsv(self, shifted, tmp_path, system, sign):
        points, out = tmp_path / "points.fcsv", tmp_path / "out.fcsv"
        preamble = f"# Markups fiducial file version = 4.11\n# CoordinateSystem = {system}\n"
        preamble += "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
        rest = [0, 0, 0, 1, 1, 1, 0, "F", "", ""]
        rows = [",".join(map(str, (n, *(point * sign), *rest))) for n, point in enumerate(HERE)]
        points.write_text(preamble + "\n".join(rows) + "\n")
        done("apply", "--points", points, "-t", shifted.warp, "--output", out)
        assert out.read_text().startswith(preamble)
        cells = [line.split(",") for line in out.read_text().splitlines()[3:]]
        assert np.array([line[1:4] for line in cells], float) * sign == pytest.approx(HERE - SHIFT, abs=1e-3)
        assert [line[4:] for line in cells] == [row.split(",")[4:] for row in rows]

    def test_a_frame_that_contradicts_the_file_is_refused(self, shifted, tmp_path):
        points = tmp_path / "points.mrk.json"
        points.write_text(json.dumps(MARKUPS))
        arguments = ("--points", points, "-t", shifted.warp, "--output", tmp_path / "out.mrk.json")
        assert "its points are lps, but --points-in says ras" in refused("apply", *arguments, "--points-in", "ras")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{}",
            '{"markups": [{"controlPoints": [{"position": ["a", 1, 2]}]}]}',
            json.dumps({"markups": [{"controlPoints": [{"position": [1, 2]}] * 3}]}),  # as many numbers as two points
            "[" * 100_000,
        ],
        ids=["empty", "none", "text", "two numbers", "nested"],
    )
    def test_what_is_no_markups_document_is_one_line(self, shifted, tmp_path, text):
        points = tmp_path / "points.mrk.json"
        points.write_text(text)
        arguments = ("--points", points, "-t", shifted.warp, "--output", tmp_path / "out.mrk.json")
        assert "points.mrk.json is not a Slicer markups document" in refused("apply", *arguments)

    def test_a_list_with_a_cell_beyond_measure_is_one_line(self, shifted, tmp_path):
        points = tmp_path / "points.fcsv"
        points.write_text(f"# CoordinateSystem = LPS\nid,{'1' * 200_000},2,3\n")
        line = refused("apply", "--points", points, "-t", shifted.warp, "--output", tmp_path / "out.fcsv")
        assert "points.fcsv cannot be read (field larger than field limit" in line


@pytest.mark.parametrize(("divider", "decimal"), [(";", ","), (";", "."), ("\t", "."), ("\t", ",")])
def test_spreadsheets_of_other_countries(shifted, tmp_path, divider, decimal):
    """Cells divided by semicolons or tabs, with commas as decimal points where these are free; written likewise."""
    points, out = tmp_path / "points.csv", tmp_path / "out.csv"
    lines = [
        divider.join([f"p{n}", *(str(value).replace(".", decimal) for value in row)]) for n, row in enumerate(HERE)
    ]
    points.write_text("\n".join([divider.join(("name", "r", "a", "s")), *lines]) + "\n")
    done("apply", "--points", points, "-t", shifted.warp, "--output", out)
    header, *rows = (line.split(divider) for line in out.read_text().splitlines())
    assert header == ["name", "r", "a", "s"] and [row[0] for row in rows] == ["p0", "p1", "p2"]
    found = np.array([[float(cell.replace(decimal, ".")) for cell in row[1:]] for row in rows])
    assert found == pytest.approx(HERE - SHIFT, abs=1e-3)


def test_points_beyond_the_field_are_counted(shifted, tmp_path):
    points, out = write(tmp_path / "points.csv", [*HERE, (500, 0, 0), (0, -500, 0)]), tmp_path / "out.csv"
    printed = done("apply", "--points", points, "-t", shifted.warp, "--output", out, "--points-in", "ras")
    assert "warning: 2 of them lie outside the field and were moved by its border value" in printed
    assert read(out)[3] == pytest.approx(np.array((500, 0, 0)) - SHIFT, abs=0.01)
