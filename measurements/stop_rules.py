r"""Compare stop rules on real pairs, unchanged and with one scan changed: Dice, folds and work, side by side.

    python -m measurements.stop_rules --data DIR --pairs pair,s3-s4 --change none,skull \
        --rule iterstop --rule iterstop:delta=0.001

A change is made to the moving scan after normalisation, on the working grid: `contrast` brings the intensities of grey
and white matter closer together, `skull` adds patches of a bright shell 4 to 8 voxels outside the brain, `noise` adds
noise and a bias field. Work counts all iterations, in units of one at full size (`runtime.loop.stop_rules.WORK`);
the loop itself runs every schedule, over memoised flows (`runtime.workflows.evaluation.scoring.memoised_pair`). Pairs,
labels and `--data` are those of measurements/real_pairs_list.py, but Dice is taken on the working grid.
"""

import json
from pathlib import Path

import click
import numpy as np
from scipy.ndimage import binary_dilation, binary_fill_holes, gaussian_filter

import runtime
from measurements.real_pairs_list import ALL, PAIR_LABELS, files
from runtime.images.overlap import common_labels, mean_dice
from runtime.images.resampling.resample import resample
from runtime.images.volume import read_labels
from runtime.loop import iterstop
from runtime.loop.stop_rules import WORK
from runtime.workflows.evaluation.scoring.memoised_pair import MemoisedPair, ResultMemory, TimeAccount

Array = np.ndarray
KINDS = {"similarity": str, "delta": float, "stability": float, "max_iterations": int, "on_stop": str, "smooth": float}
RULES = ("1,1,1,1", "iterstop", "iterstop:on_stop=revert", "iterstop:delta=0.001", "tci", "thrift")
COLUMNS = ("Dice", "folded %", "work", "ncc")


def contrast(image: Array, brain: Array, chance: np.random.Generator) -> Array:
    scaled = image / np.quantile(image[brain], 0.98)
    levels = np.interp(scaled, [0, 0.25, 0.55, 0.8, 1, 1.6], [0, 0.35, 0.45, 0.55, 0.6, 1])
    return levels * (image > 0)


def skull(image: Array, brain: Array, chance: np.random.Generator) -> Array:
    shell = binary_dilation(brain, iterations=8) & ~binary_dilation(brain, iterations=3)
    patches, texture = _blobs(chance, image.shape, 8), _blobs(chance, image.shape, 1)
    return np.where(shell & (patches > -0.2), (0.7 + 0.12 * texture).clip(0.2, 1), image)


def noise(image: Array, brain: Array, chance: np.random.Generator) -> Array:
    uneven = _blobs(chance, image.shape, 25)
    added = 0.06 * chance.standard_normal(image.shape)
    return (image * np.exp(0.6 * uneven / np.abs(uneven).max()) + added) * (image > 0)


def _blobs(chance: np.random.Generator, shape: tuple[int, ...], size: float) -> Array:
    """Return smooth noise with blobs about `size` voxels wide, standard deviation 1."""
    field = gaussian_filter(chance.standard_normal(shape), size)
    return field / field.std()


CHANGES = {"none": lambda image, brain, chance: image, "contrast": contrast, "skull": skull, "noise": noise}


def changed(image: Array, change: str, seed: int = 5) -> Array:
    """Return an image (I, J, K) in [0, 1] after one of `CHANGES`."""
    out = CHANGES[change](image, binary_fill_holes(image > 0.02), np.random.default_rng(seed))
    return np.require(np.clip(out, 0, 1), np.float32, ["C", "W"])


def working(engines, data: Path, pair: str) -> tuple[Array, Array, Array, Array]:
    """Return fixed, moving, fixed labels and moving labels of a pair on the working grid, aligned by the affine."""
    fixed, moving, fixed_labels, moving_labels = files(data, pair)
    result = runtime.register(fixed, moving, engines, runtime.Options(schedule="0,0,0,0"))
    grid, found = result.transform.grid, []
    for path, affine in ((fixed_labels, None), (moving_labels, result.transform.affine)):
        labels = read_labels(path, "labels")
        found.append(resample(labels.data, labels.grid, grid, affine, "nearest").astype(np.int64))
    return result.working.fixed, result.working.moving, *found


def warp_labels(labels: Array, flow: Array) -> Array:
    """Warp labels (I, J, K) by a flow (I, J, K, 3), nearest neighbour, 0 outside."""
    positions = np.rint(flow + np.stack(np.indices(labels.shape), -1)).astype(np.intp)
    inside = ((positions >= 0) & (positions < labels.shape)).all(axis=-1)
    i, j, k = np.moveaxis(np.where(inside[..., None], positions, 0), -1, 0)
    return np.where(inside, labels[i, j, k], 0)


def options_of(text: str) -> runtime.Options:
    """Parse ``schedule:option=value:...``, with options of stop rules, similarity and smoothing, one value each."""
    schedule, *settings = text.split(":")
    if schedule.startswith("cascade"):
        raise click.ClickException(f"--rule: got {text!r}, expected counts or a stop rule")
    found = {}
    for name, _, value in (setting.partition("=") for setting in settings):
        try:
            found[name] = KINDS[name](value)
        except (KeyError, ValueError):
            expected = ", ".join(f"{name}={kind.__name__}" for name, kind in KINDS.items())
            raise click.ClickException(f"--rule: got {name}={value} in {text!r}, expected {expected}") from None
    return runtime.Options(schedule=schedule, **found)


def compare(engines, images: tuple, rules: tuple[str, ...], labels) -> list[dict]:
    """Return one record per rule for a pair on the working grid."""
    fixed, moving, fixed_labels, moving_labels = images
    there = [engines.fields.to_device(image) for image in (fixed, moving)]
    ncc, records, memory = engines.fields.scorer(there[0], "ncc"), [], ResultMemory()
    pair = engines.fixed_side(there[0], "ncc").pair(there[1])
    for rule in rules:
        options = options_of(rule).resolved(engines.engine_set)
        asked = pair.with_similarity(options.similarity).with_smoothing(options.smooth)
        memoised = MemoisedPair(asked, memory, options.similarity, options.smooth, TimeAccount())
        found = iterstop.run(memoised, options.build_schedule())
        host = np.moveaxis(engines.fields.to_host(found.flow), 0, -1)
        ran = {trace.level: len(trace.decisions) for trace in found.passes[0]}
        records.append(
            {
                "rule": rule,
                "Dice": mean_dice(fixed_labels, warp_labels(moving_labels, host), labels),
                "folded %": 100 * engines.fields.folded_share(found.flow),
                "work": sum(WORK[level] * count for level, count in ran.items()),
                "ncc": float(ncc(there[1], found.flow)),
                "iterations": found.counts[0],
            }
        )
    return records


def row(cells) -> str:
    return "| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--engine-dir", default="engines", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--pairs", default=",".join(ALL), show_default=True)
@click.option("--change", "changes", default=",".join(CHANGES), show_default=True)
@click.option("--rule", "rules", multiple=True, default=RULES, show_default=True, help="schedule:option=value:...")
@click.option("--backend", default="auto", show_default=True)
@click.option("--threads", type=int)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures to this file.")
def main(engine_dir, data, pairs, changes, rules, backend, threads, json_path) -> None:
    records = []
    for rule in rules:  # invalid rules are refused before any work
        options_of(rule)
    with runtime.open_engines(engine_dir, backend, threads) as engines:
        for pair in pairs.split(","):
            fixed, moving, *maps = working(engines, data, pair)
            labels = PAIR_LABELS if pair == "pair" else common_labels(*maps)
            for change in changes.split(","):
                images = (fixed, changed(moving, change), *maps)
                with engines.running():
                    found = compare(engines, images, rules, labels)
                records += [{"pair": pair, "change": change, **record} for record in found]
                click.echo(f"{pair} {change}", err=True)
                if json_path:
                    json_path.write_text(json.dumps(records, indent=2) + "\n")
    click.echo("\n".join(table(records)))


def table(records: list[dict]) -> list[str]:
    """Return one line per change and rule: means over the pairs, and every pair's iterations."""
    lines = [row(["change", "rule", *COLUMNS, "iterations"]), row(["---"] * (len(COLUMNS) + 3))]
    for change, rule in dict.fromkeys((record["change"], record["rule"]) for record in records):
        chosen = [record for record in records if (record["change"], record["rule"]) == (change, rule)]
        means = [float(np.mean([record[column] for record in chosen])) for column in COLUMNS]
        lines.append(row([change, rule, *means, " ".join("".join(map(str, r["iterations"])) for r in chosen)]))
    return lines


if __name__ == "__main__":
    main()
