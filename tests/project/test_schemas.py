"""The published JSON Schemas, checked against real files: the shipped manifest, and manifests and reports made here."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest

from runtime.registration.options import Options
from tests import scans

ROOT = Path(__file__).resolve().parents[2]


def schema(name: str) -> dict:
    return json.loads((ROOT / "docs" / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8"))


def check(name: str, document: dict) -> None:
    jsonschema.validate(document, schema(name), jsonschema.Draft202012Validator)


@pytest.mark.parametrize("name", ["manifest", "report"])
def test_the_schemas_are_schemas(name):
    jsonschema.Draft202012Validator.check_schema(schema(name))


def test_manifests(shipped, engine_dir):
    for folder in (shipped, engine_dir):
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        check("manifest", manifest)
        assert set(manifest) <= set(schema("manifest")["properties"]), "every field is described"


@pytest.mark.parametrize("path", ["engines/estimator_level1/sha256", "stop/delta", "sha256", "levels"])
def test_a_manifest_without_a_part_is_not_valid(shipped, path):
    manifest = json.loads((shipped / "manifest.json").read_text(encoding="utf-8"))
    *parents, last = path.split("/")
    part = manifest
    for name in parents:
        part = part[name]
    del part[last]
    with pytest.raises(jsonschema.ValidationError, match=last):
        check("manifest", manifest)


@pytest.fixture(scope="module")
def reports(engines, tmp_path_factory) -> list[dict]:
    """Of a registration with everything, and of one without an inverse or an affine step."""
    folder = tmp_path_factory.mktemp("reports")
    grid = scans.grid((30, 36, 28))
    fixed = scans.write_scan(folder / "fixed.nii.gz", grid)
    moving = scans.write_scan(folder / "moving.nii.gz", grid, scans.bend)
    labels = scans.write_labels(folder / "labels.nii.gz", grid, scans.bend)
    from runtime.registration.output.folder import Outputs

    whole = engines.register(fixed, moving, labels=labels, fixed_mask=fixed, moving_mask=moving)
    whole.save(folder / "whole")
    short = engines.register(fixed, moving, Options(affine="none", schedule="cascade:2"))
    short.save(folder / "short", outputs=Outputs(both=False, compact=True))
    return [json.loads((folder / name / "report.json").read_text(encoding="utf-8")) for name in ("whole", "short")]


def test_reports(reports):
    for report in reports:
        check("report", report)
        assert set(report) <= set(schema("report")["properties"]), "every field is described"


def test_a_report_of_another_kind_is_not_valid(reports):
    report = copy.deepcopy(reports[0])
    report["inputs"]["fixed"]["shape"] = [30, 36]
    with pytest.raises(jsonschema.ValidationError, match=r"\[30, 36\] is too short"):
        check("report", report)
