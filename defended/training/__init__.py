"""Losses, metrics, schedules and callbacks for training certificates."""

from typing import Any

from defended._moved import moved_attribute


def __getattr__(name: str) -> Any:
    """Give modules by the names that they had."""
    return moved_attribute("defended.training", name)
