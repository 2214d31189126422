"""The parts of a monitor: the test, the evidence behind an alarm, and where verdicts come from.

`defended.serving.RejectionMonitor` puts them together.
"""
