"""The parts of a record in words and tables, and as Markdown, readable in a terminal. All shown is in the record."""

from collections.abc import Callable

from ....types import Record
from ..machine.gpu import gpu_words
from .cells import (
    PERCENTILES,
    Section,
    Table,
    by,
    counts,
    extent,
    gibibytes,
    gigabytes,
    in_seconds,
    ms,
    number,
    percentiles,
)

LEAST_SHARE = 0.0005  # share of a run's time below which a stage has no row


def render(record: Record) -> str:
    """Render all parts of a record, in order; the record may come from its JSON file."""
    return "\n\n".join(filter(None, (section(part, record) for part in (HEAD, *SECTIONS, WARNINGS))))


def section(part: str, record: Record) -> str:
    """Render one part of a record; empty if it was not measured."""
    if part == HEAD:
        return "\n".join(["# Benchmark", "", *(f"- {name}: {value}" for name, value in head_facts(record).items())])
    if part == WARNINGS:
        return "\n".join(f"warning: {line}" for line in record.get("doubts", ()))
    found = SECTIONS[part](record)
    return found.markdown() if found else ""


def sections(record: Record) -> list[Section]:
    """Return the parts that were measured, in order."""
    return [found for make in SECTIONS.values() if (found := make(record))]


def head_facts(record: Record) -> dict[str, str]:
    """Return what was measured, where and how, in words."""
    machine, stop = record["machine"], record["stop"]
    rule = f" ({stop['similarity']}, delta {stop['delta']}, at most {stop['limit']}, {stop['on_stop']})" if stop else ""
    facts = {
        "processor": f"{machine['cpu']}, {machine['cores']} of {machine['cores_of_the_machine']} cores usable",
        "instructions": " ".join(machine["flags"]) or "unknown",
        "memory": f"{gibibytes(machine['memory_bytes'])}, {gibibytes(machine['memory_available_bytes'])} of it free",
        "load": f"{number(machine['load_average'], 2)} before the start",
        "GPU": gpu_words(machine["card"]) if machine.get("card") else "",
        "system": machine["system"],
        "versions": ", ".join(f"{k} {v}" for k, v in record["versions"].items() if k != "platform"),
        "engine set": f"{record['engine_set']['folder']}: " + _hashes(record["engine_set"]["sha256"]),
        "contenders": "; ".join(_contender(row) for row in record["contenders"]),
        "left out": "; ".join(f"{entry['name']}: {entry['reason']}" for entry in record["left_out"]),
        "threads": str(record["threads"]),
        "pair": _pair(record),
        "schedule": record["schedule"]["name"] + rule,
        "runs": f"{record['runs']} after {record['warmup']} to warm up; contenders take turns",
    }
    return {name: value for name, value in facts.items() if value}


def _pair(record: Record) -> str:
    if "pair" not in record:
        return ""
    pair = record["pair"]
    return f"{pair['words']}; grid {by(pair['shape'])}, {pair['spacing_mm']:g} mm"


def _contender(row: Record) -> str:
    return f"{row['name']} ({row['library']} on {row['device']}, field operations {row['fields']})"


def _hashes(graphs: dict[str, dict[str, str]]) -> str:
    """Format the hashes of the graphs of each precision."""
    lists = (", ".join(f"{name} {value[:8]}" for name, value in hashes.items()) for hashes in graphs.values())
    return "; ".join(f"{precision}: {hashes}" for precision, hashes in zip(graphs, lists, strict=True))


def _gate(record: Record) -> Section | None:
    if "gate" not in record:
        return None
    head = ("voxel", "max", "mean", "p95", "p99", "max mm", "mean mm", "iterations", "similarity", "folded %")
    words = f"Flow against {record['gate']['reference']}: length of the difference."
    return Section("Accuracy", [words], [Table(head, [_gate_row(row) for row in record["gate"]["rows"]])])


def _gate_row(row: Record) -> list[str]:
    name, difference = f"{row['name']} (reference)", ["-"] * 6
    if not row["reference"]:
        voxels = [f"{row['voxels'][part]:.2g}" for part in ("max", "mean", "p95", "p99")]
        name, difference = row["name"], voxels + [f"{row['mm'][part]:.2g}" for part in ("max", "mean")]
    similarity, folded = f"{row['similarity']:.6f}", f"{100 * row['folded_share']:.4f}"
    return [name, *difference, counts(row["counts"]), similarity, folded]


def _speed(record: Record) -> Section | None:
    rows = [row for row in record["contenders"] if "loop" in row]
    if not rows:
        return None
    words = "ms per run. Loop: both images encoded and all iterations. Finish: image warped, folds counted."
    words += " On a GPU, the GPU's own time." * any(row.get("card_memory") for row in rows)
    table = []
    on_gpu = any(row.get("card_memory") for row in rows)
    for row in rows:
        loop, finish = ([*percentiles(row[part]), str(row[part]["n"])] for part in ("loop", "finish"))
        memory = [gigabytes(row["peak_bytes"])]
        memory += [gigabytes((row.get("card_memory") or {}).get("peak"))] if on_gpu else []
        table += [[row["name"], "loop", *loop, *memory], ["", "finish", *finish, *([""] * len(memory))]]
    head = ("", "", *PERCENTILES, "runs", "peak memory GB", *(["arrays on the GPU GB"] if on_gpu else []))
    return Section("Speed", [words], [Table(head, table)], [*_rank_note(record["runs"]), *_gpu_note(rows)])


def _rank_note(runs: int) -> list[str]:
    """Explain the percentiles of few values."""
    if runs >= 100:
        return []
    return [f"Percentiles are nearest ranks: of {runs} values p99 is the largest. Memory is of the whole process."]


def _gpu_note(rows: list[Record]) -> list[str]:
    """Report the GPU memory in use by all programs together."""
    used = [row["card_memory"]["used"] for row in rows if row.get("card_memory")]
    return [f"In use on the GPU, by all contenders and others: {gigabytes(max(used))} GB."] if used else []


def _stages(record: Record) -> Section | None:
    parts = [_stages_of(row) for row in record["contenders"] if "stages" in row]
    return Section("Stages", tables=parts) if parts else None


def _stages_of(row: Record) -> Table:
    head = (f"{row['name']}: ms per call", "level", "calls per run", *PERCENTILES, "share %")
    table = [
        [
            stage["stage"],
            "" if stage["level"] is None else str(stage["level"]),
            f"{stage['calls']:g}",
            *percentiles(stage["seconds"]),
            f"{100 * stage['share']:.1f}",
        ]
        for stage in row["stages"]
        if stage["share"] >= LEAST_SHARE
    ]
    return Table(head, table)


def _account(record: Record) -> Section | None:
    rows = [row for row in record["contenders"] if "account" in row]
    if not rows:
        return None
    head: tuple[str, ...] = (
        "mean ms per run",
        "loop",
        "floor",
        "estimator above",
        "encode above",
        "fields",
        "overhead",
    )
    head += ("GFLOP", "GFLOP/s", "peak", "share of peak %", "fastest run %", "in estimators %")
    words = (
        "Floor: the convolutions' work at the peak, the best matrix product measured here at this precision. "
        "Overhead: time in no stage; on a GPU, its idle time."
    )
    table = Table(head, [[row["name"], *_account_row(row["account"])] for row in rows])
    return Section("Where the time goes", [words], [table])


def _account_row(found: Record) -> list[str]:
    floor, peak, gflop = found.get("floor"), found["peak_gflops"], found["gflop"]["total"]
    above = {name: found[name] - (floor[name] if floor else 0) for name in ("estimator", "encode")}
    times = [found["loop"], floor["total"] if floor else None, *above.values(), found["fields"], found["overhead"]]
    inside = found["estimator_gflops"] / peak if peak and found["estimator_gflops"] else None
    shares = (found.get("share_of_peak"), found.get("share_of_peak_fastest"), inside)
    rates = (gflop, found["gflops"], peak, *(100 * share if share else None for share in shares))
    return [*map(ms, times), *(number(rate, 1) for rate in rates)]


def _against(record: Record) -> Section | None:
    rows = [
        [name, rival, f"{ratio['median']:.2f}", f"{ratio['min']:.2f} to {ratio['max']:.2f}", str(ratio["n"])]
        for rival, found in record.get("against", {}).items()
        for name, ratio in found.items()
    ]
    head = ("loop", "than", "median of rounds", "range", "rounds")
    return Section("Times faster", tables=[Table(head, rows)]) if rows else None


def _throughput(record: Record) -> Section | None:
    if "throughput" not in record:
        return None
    table = [
        [name, *(ms(found["seconds"][part]) for part in ("median", "min", "max")), f"{found['per_hour']:.0f}"]
        for name, found in record["throughput"].items()
    ]
    head = ("", "ms per image", "min", "max", "images per hour")
    words = "The fixed image is encoded once; loop and finish."
    return Section("One fixed image, many moving ones", [words], [Table(head, table)])


def _whole(record: Record) -> Section | None:
    if "whole" not in record:
        return None
    words = {"api": "Python, scans read before", "command": "command, files in and out"}
    table = [
        [
            name,
            words[way],
            in_seconds(found["seconds"]["median"]),
            extent(found["seconds"]),
            in_seconds(found["loop"]["median"]),
            f"{found['times_the_loop']['median']:.2f}",
            gigabytes(found["peak_bytes"]),
            by(found["working_shape"]),
        ]
        for name, ways in record["whole"].items()
        for way, found in ways.items()
    ]
    head = ("", "register", "s", "range", "of it loop", "times the loop", "peak memory GB", "grid")
    return Section("Whole registrations", tables=[Table(head, table), _whole_stages(record["whole"])])


def _whole_stages(whole: Record) -> Table:
    """Return the table of mean seconds by stage."""
    found = {(name, way): ways[way] for name, ways in whole.items() for way in ways}
    stages = list(dict.fromkeys(stage for entry in found.values() for stage in entry["stages"]))
    rows = [
        [
            name,
            way,
            *(in_seconds(entry["stages"].get(stage)) for stage in stages),
            in_seconds(entry["outside_stages"]),
        ]
        for (name, way), entry in found.items()
    ]
    return Table(("", "mean s", *stages, "start-up and rest"), rows)


def _start_up(record: Record) -> Section | None:
    if "start_up" not in record:
        return None
    found = record["start_up"]
    names = ("start", "open", "first", "steady")
    table = [
        [name, state, *(in_seconds(times[part]) for part in names), f"{times['first'] / times['steady']:.2f}"]
        for name, states in found["contenders"].items()
        for state, times in states.items()
    ]
    head = ("", "cache", "process", "open", "first loop", "steady loop", "first / steady")
    return Section(
        "Start-up", [f"Kernels, once per machine: {found['kernels']:.1f} s. Then, in s:"], [Table(head, table)]
    )


def _shapes(record: Record) -> Section | None:
    if "shapes" not in record:
        return None
    names = list(record["fits"])
    rows = [
        [
            by(row["shape"]),
            f"{row['megavoxels']:.2f}",
            *(ms(row["loops"][name]["median"]) for name in names),
        ]
        + [_worst(row["gate"]["rows"])]
        for row in record["shapes"]
    ]
    medians = Table(("grid", "megavoxels", *names, "largest difference, voxel"), rows)
    fits = [
        [name, ms(fit["slope"]), ms(fit["intercept"]), f"{100 * fit['deviation']:.1f}"]
        for name, fit in record["fits"].items()
    ]
    lines = Table(("line", "ms per megavoxel", "ms at 0", "largest deviation %"), fits)
    words = f"Median loop, ms; accuracy against {_references(record)}"
    return Section("Time against volume", [words], [medians, lines])


def _worst(rows: list[Record]) -> str:
    """Format the largest difference of every contender that is not the reference, in order."""
    return " / ".join(f"{row['voxels']['max']:.2g}" for row in rows if not row["reference"]) or "-"


def _references(record: Record) -> str:
    return ", ".join(dict.fromkeys(row["gate"]["reference"] for row in record["shapes"]))


HEAD, WARNINGS = "head", "doubts"
SECTIONS: dict[str, Callable[[Record], Section | None]] = {
    "gate": _gate,
    "speed": _speed,
    "stages": _stages,
    "account": _account,
    "against": _against,
    "throughput": _throughput,
    "whole": _whole,
    "start_up": _start_up,
    "shapes": _shapes,
}
