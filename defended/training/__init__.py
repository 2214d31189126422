"""Losses, metrics, schedules and callbacks for training certificates."""
