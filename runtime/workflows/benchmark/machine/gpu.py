"""The card a benchmark ran on: what its driver says of it, and what `nvidia-smi` adds where it is installed."""

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

BUSY_PERCENT = 10  # of a card's time used by others, before anything here has begun
SECONDS = 20
# nvidia-smi's names and ours; what it does not know of a card, it answers in brackets.
QUERIES = {
    "driver_version": "driver_version",
    "clocks.sm": "clock_mhz",
    "clocks.max.sm": "largest_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "clocks.max.mem": "largest_memory_clock_mhz",
    "temperature.gpu": "temperature_c",
    "power.limit": "power_limit_w",
    "memory.used": "memory_used_mib",
    "utilization.gpu": "used_percent",
    "persistence_mode": "persistence_mode",
    "compute_mode": "compute_mode",
}
WORDS = ("driver_version", "persistence_mode", "compute_mode")  # all others are numbers


def card_facts() -> dict[str, Any] | None:
    """The first card's name, compute capability, memory, driver, and clocks and load now; None without a card."""
    from ....backends.cuda.card import Card, find_card

    card = find_card()
    return {**dataclasses.asdict(card), **smi_facts(card.bus)} if isinstance(card, Card) else None


def smi_facts(bus: str, run: Callable[..., Any] = subprocess.run) -> dict[str, str | float]:
    """What nvidia-smi tells of the card at this place; empty where it is not installed or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = [program, f"--id={bus}", f"--query-gpu={','.join(QUERIES)}", "--format=csv,noheader,nounits"]
    try:
        done = run(query, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = (value.strip() for value in done.stdout.strip().split(","))
    told = {name: value for name, value in zip(QUERIES.values(), values, strict=False) if value[:1] != "["}
    return {name: value if name in WORDS else float(value) for name, value in told.items()}


def card_words(card: dict[str, Any]) -> str:
    """A card in a line."""
    clock, most = card.get("clock_mhz"), card.get("largest_clock_mhz")
    facts = [
        f"{card['memory_bytes'] / 2**30:.1f} GiB",
        "compute capability {}.{}".format(*card["capability"]),
        f"driver {card['driver_version']}" if "driver_version" in card else "",
        "for CUDA {}.{}".format(*card["driver"]),
        f"{clock:.0f} of {most:.0f} MHz" if isinstance(clock, float) and isinstance(most, float) else "",
        f"at most {card['power_limit_w']:.0f} W" if isinstance(card.get("power_limit_w"), float) else "",
    ]
    return f"{card['name']}: {', '.join(filter(None, facts))}"


def card_doubts(card: dict[str, Any] | None) -> list[str]:
    """Why figures from this card should not be trusted."""
    used = (card or {}).get("used_percent")
    if isinstance(used, float) and used > BUSY_PERCENT:
        return [f"the card was {used:.0f}% busy before the start; others use it"]
    return []
