"""What the classes of the data sets are called, in the order of their numbers."""

from __future__ import annotations

_DIGITS = tuple(map(str, range(10)))
_SPEEDS = tuple(f"speed limit {speed}" for speed in (20, 30, 50, 60, 70, 80))

CLASS_NAMES = {
    "digits": _DIGITS,
    "mnist": _DIGITS,
    "fashion_mnist": (
        "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "gtsrb": (
        *_SPEEDS, "end of speed limit 80", "speed limit 100", "speed limit 120",
        "no passing", "no passing for lorries", "right of way at the next crossing", "priority road", "yield", "stop",
        "no vehicles", "no lorries", "no entry",
        "danger", "bend to the left", "bend to the right", "double bend", "uneven road", "slippery road",
        "road narrows on the right", "road works", "traffic lights", "pedestrians", "children", "cyclists",
        "snow or ice", "wild animals",
        "end of all limits",
        "turn right ahead", "turn left ahead", "ahead only", "ahead or right", "ahead or left", "keep right",
        "keep left", "roundabout",
        "end of no passing", "end of no passing for lorries",
    ),
}  # fmt: skip
