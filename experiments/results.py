"""Result files: one JSON object each, written whole or not at all."""

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file; it takes its name only when it is whole."""
    from bnn.training.files import whole_file  # here, since bnn.training loads Lightning

    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with whole_file(path) as file:
        file.write(text)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError names a file that is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def is_complete(result: dict[str, Any]) -> bool:
    """Return whether all configured epochs of a run ran in full."""
    if "steps" in result:
        return result["finished"] is not None
    # Older versions claimed that these had finished.
    trainer = result["config"].get("trainer") or {}
    return not any(trainer.get(name) not in (None, False) for name in ("max_time", "fast_dev_run"))


def has_ended(result: dict[str, Any]) -> bool:
    """Return whether a run is over: complete, or stopped by its own config (max_steps, early stopping).

    One that time cut short goes on; a trial (fast_dev_run) is none.
    """
    return is_complete(result) or result.get("stopped_by") in ("trainer.max_steps", "early stopping")


def done(result: dict[str, Any]) -> str:
    """Return what a run did, in words.

    >>> done({"epochs": 2, "steps": 9, "stopped_by": "trainer.max_steps", "config": {"epochs": 30}})
    '2 of 30 epochs, 9 steps, stopped by trainer.max_steps'
    """
    stopped = f", stopped by {result['stopped_by']}" if result.get("stopped_by") else ""
    steps = f", {result['steps']:,} steps" if "steps" in result else ""
    return f"{result['epochs']} of {result['config']['epochs']} epochs{steps}{stopped}"


def bits_name(data: Any) -> str:
    """Return what results call the bits that a language model needs for a token: bits_per_character, bits_per_byte."""
    return f"bits_per_{data.unit}"
