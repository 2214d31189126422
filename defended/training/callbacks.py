"""Callbacks for `fit`: the recipe, schedules for the radius, radius doubling, layers in proportion, sharp bounds."""

from __future__ import annotations

from defended.gloro.reparametrise.balance import BalanceLayers
from defended.training.radius import EpsilonSchedule, RadiusDoubling, TradesSchedule
from defended.training.recipe import FallingRate, recipe
from defended.training.sharp_bounds import SharpenAtEnd, SharpenBounds

__all__ = [
    "BalanceLayers",
    "EpsilonSchedule",
    "FallingRate",
    "RadiusDoubling",
    "SharpenAtEnd",
    "SharpenBounds",
    "TradesSchedule",
    "recipe",
]
