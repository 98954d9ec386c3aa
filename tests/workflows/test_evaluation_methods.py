"""Methods and pairs of the command line: expansions, names and errors."""

import pytest

from runtime.backends.engine_set import load_engine_set
from runtime.errors import InputError
from runtime.loop.stop_rules import STOP_RULES
from runtime.workflows.evaluation.engine_sets import NamedSet, parameters
from runtime.workflows.evaluation.methods import BEFORE, FAMILIES, PAPER_DELTAS, Choices, methods
from runtime.workflows.evaluation.pair_list import pair_name, parse_label_ids, read_pairs


@pytest.fixture(scope="module")
def engine_set(engine_dir):
    return load_engine_set(engine_dir)


def names(engine_set, **choices):
    return [method.name for method in methods(Choices(**choices), engine_set)]


class TestMethods:
    def test_by_default_rp_net_and_the_sets_own_stop_rule(self, engine_set):
        assert names(engine_set) == [BEFORE, "1,1,1,1", "iterstop keep 0.005"]

    def test_every_threshold_with_every_way_to_stop(self, engine_set):
        found = names(engine_set, schedules=("iterstop",), deltas=(0.01, 0.001), on_stops=("keep", "revert"))
        ways = ("keep 0.01", "keep 0.001", "revert 0.01", "revert 0.001")
        assert found == [BEFORE, *(f"iterstop {way}" for way in ways)]

    def test_other_stop_rules_take_what_they_know(self, engine_set):
        found = names(engine_set, schedules=("tci", "iterstop"), stabilities=(0.02, 0.1), on_stops=("revert",))
        assert found == [BEFORE, "tci 0.005", "tci 0.005 stability 0.1", "iterstop revert 0.005"]

    def test_what_differs_from_the_set_is_in_the_name(self, engine_set):
        found = names(engine_set, schedules=("iterstop",), similarities=("lncc",), max_iterations=(3,))
        assert found == [BEFORE, "iterstop keep 0.005 lncc at most 3"]

    def test_every_schedule_that_iterates_with_every_smoothing(self, engine_set):
        found = names(engine_set, schedules=("1,2,1,1", "tci", "0,0,0,0"), smooths=(0.0, 1.5))
        assert found == [BEFORE, "1,2,1,1", "1,2,1,1 smooth 1.5", "tci 0.005", "tci 0.005 smooth 1.5"]

    def test_a_smoothed_family_is_a_family_of_its_own(self, engine_set):
        found = methods(Choices(schedules=("t,1,1,1",), times=(1, 3), smooths=(0.0, 2.0)), engine_set)[1:]
        assert [method.options.smooth for method in found] == [0, 2, 0, 2]
        assert [method.families for method in found[1::2]] == [(("t,1,1,1 smooth 2", 1),), (("t,1,1,1 smooth 2", 3),)]

    @pytest.mark.parametrize(
        "family, expected",
        [
            ("t,1,1,1", ["1,1,1,1", "3,1,1,1"]),
            ("t,t,t,t", ["1,1,1,1", "3,3,3,3"]),
            ("cascade:t", ["cascade:1", "cascade:3"]),
        ],
    )
    def test_t_stands_for_times(self, engine_set, family, expected):
        found = methods(Choices(schedules=(family,), times=(1, 3)), engine_set)[1:]
        assert [method.name for method in found] == expected
        assert [method.families for method in found] == [((family, 1),), ((family, 3),)]

    def test_a_schedule_of_several_families_is_run_once(self, engine_set):
        (method,) = methods(Choices(schedules=("t,1,1,1", "1,t,1,1", "1,1,1,1"), times=(1,)), engine_set)[1:]
        assert method.families == (("t,1,1,1", 1), ("1,t,1,1", 1))

    def test_the_paper(self, engine_set):
        found = methods(Choices(paper=True), engine_set)
        swept = {(m.options.on_stop, m.options.delta) for m in found if m.options.schedule == "iterstop"}
        assert swept == {(way, delta) for way in ("keep", "revert") for delta in PAPER_DELTAS}
        places = [place for method in found for place in method.families]
        assert sorted(places) == sorted((family, t) for family in FAMILIES for t in range(1, 11))
        assert {method.options.schedule for method in found if method.stops} == set(STOP_RULES)
        assert len({method.title for method in found}) == len(found)

    @pytest.mark.parametrize(
        "choices, message",
        [
            ({"schedules": ("1,2,2",)}, "--schedule: got 3 counts"),
            ({"schedules": ("sometimes",)}, "--schedule: got 'sometimes'"),
            (
                {"schedules": ("1,1,1,1",), "deltas": (0.01,)},
                "--delta: got 0.01, but no schedule uses it; leave it out or use --schedule iterstop",
            ),
            ({"schedules": ("tci",), "on_stops": ("keep",)}, "--on-stop: got keep, but no schedule uses it"),
            ({"schedules": ("1,1,1,1",), "max_iterations": (3,)}, "--max-iterations: got 3, but no schedule uses it"),
            ({"schedules": ("iterstop",), "deltas": (-1.0,)}, "--delta: got -1"),
            ({"schedules": ("1,1,1,1",), "smooths": (-1.0,)}, "--smooth: got -1, expected 0"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, engine_set, choices, message):
        with pytest.raises(InputError, match=message):
            methods(Choices(**choices), engine_set)


class TestEngineSets:
    def test_parameters_are_those_of_the_network(self, engine_set, checkpoint):
        from train.model.checkpoint import load_checkpoint

        network = load_checkpoint(checkpoint).network()
        assert parameters(engine_set) == sum(weights.numel() for weights in network.parameters()) == 419_964

    @pytest.mark.parametrize("blocks", [0, 1, 4])
    def test_with_other_numbers_of_residual_blocks(self, engine_set, blocks):
        from dataclasses import replace

        from train.model.network import NetworkConfig, RPNet

        network = {**engine_set.manifest["network"], "res_blocks": blocks}
        other = replace(engine_set, manifest={**engine_set.manifest, "network": network})
        expected = sum(weights.numel() for weights in RPNet(NetworkConfig(res_blocks=blocks)).parameters())
        assert NamedSet("", other).facts()["parameters"] == expected


@pytest.fixture
def files(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz", "a_labels.nii.gz", "b_labels.nii.gz", "warp.nii.gz", "affine.txt"):
        (tmp_path / name).touch()
    return tmp_path


def listed(folder, *lines):
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return read_pairs(folder / "pairs.csv")


class TestPairList:
    def test_everything_a_line_can_say(self, files):
        head = "Fixed,moving,fixed_labels,moving_labels,name,transform,label_ids,convention"
        line = 'a.nii.gz, b.nii.gz,a_labels.nii.gz,b_labels.nii.gz,first 1,"warp.nii.gz; affine.txt,inverse",2 3;4,fsl'
        (pair,) = listed(files, head, line)
        assert (pair.name, pair.fixed, pair.moving_labels) == (
            "first_1",
            files / "a.nii.gz",
            files / "b_labels.nii.gz",
        )
        assert [(link.path.name, link.inverse) for link in pair.transform] == [
            ("warp.nii.gz", False),
            ("affine.txt", True),
        ]
        assert pair.label_ids == (2, 3, 4) and pair.convention == "fsl"
        assert list(pair.files()) == ["fixed", "moving", "fixed_labels", "moving_labels", "transform 1", "transform 2"]

    def test_cells_may_be_empty_and_names_come_from_the_scans(self, files):
        (pair,) = listed(files, "fixed,moving,fixed_labels,moving_labels", "a.nii.gz,b.nii.gz,,", "")
        assert pair.name == pair_name(pair.fixed, pair.moving) == "a-b"
        assert pair.fixed_labels is None and pair.transform == () and pair.label_ids is None

    @pytest.mark.parametrize(
        "lines, message",
        [
            (("fixed,movin", "a.nii.gz,b.nii.gz"), "has the columns fixed, movin; expected fixed, moving"),
            (("fixed,moving",), "lists no pair"),
            (("fixed,moving", "a.nii.gz,"), "line 2 names no moving scan"),
            (("fixed,moving", "a.nii.gz,c.nii.gz"), "pair a-c: moving: .*c.nii.gz does not exist"),
            (("fixed,moving,fixed_labels", "a.nii.gz,b.nii.gz,a_labels.nii.gz"), "pair a-b: has labels of one scan"),
            (("fixed,moving", "a.nii.gz,b.nii.gz", "a.nii.gz,b.nii.gz"), "two pairs called a-b"),
            (("fixed,moving,transform", "a.nii.gz,b.nii.gz,affine.txt,inverse"), "line 2 has more cells"),
            (("fixed,moving,label_ids", "a.nii.gz,b.nii.gz,two"), "line 2, label_ids: got 'two'"),
        ],
    )
    def test_what_is_wrong_is_said_with_its_line(self, files, lines, message):
        with pytest.raises(InputError, match=message):
            listed(files, *lines)

    @pytest.mark.parametrize("text", ["", "0", "2,2", "1.5", "-3"])
    def test_label_ids_that_are_none(self, text):
        with pytest.raises(InputError, match="--label-ids: got"):
            parse_label_ids(text, "--label-ids")
