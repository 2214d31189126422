"""Losses, metrics, schedules and callbacks for training certificates."""

from defended._moved import earlier_modules

__getattr__ = earlier_modules("defended.training")
