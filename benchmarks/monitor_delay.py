"""How soon a monitor notices a raised rejection rate, and how often it alarms for nothing, by simulation.

    python benchmarks/monitor_delay.py [--audited 400 --inputs 10000 --false-alarm 0.01 --runs 200]

Prints the inputs until an alarm for several raised rates, after 1,000 and after 100,000 usual ones, beside a benchmark
that no test with the guarantee can be expected to beat by far: the logarithm of the threshold over what one verdict
tells. Then the share of false alarms where the rate is exactly the limit that is tested, the worst case, looked at
after every one of 20,000 verdicts.
"""

import argparse
import math

import figures
import numpy as np
from scipy.stats import entropy

from defended.serving import RejectionMonitor
from defended.serving.monitoring.delay import alarms, detection_delay
from defended.statistics.intervals import Rate

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--audited", type=int, default=400, help="rejected inputs of the audit")
parser.add_argument("--inputs", type=int, default=10_000, help="inputs of the audit")
parser.add_argument("--false-alarm", type=float, default=0.01)
parser.add_argument("--runs", type=int, default=200)
figures.add_option(parser)
options = parser.parse_args()

monitor = RejectionMonitor(Rate(options.audited, options.inputs), false_alarm=options.false_alarm)
usual = float(monitor.rate)
print(f"audited {usual:.2%}, tested: at most {monitor.limit:.3%}, alarm at a capital of {monitor.threshold:g}")
print("| rejection rate | median, after 1,000 | 90 % | median, after 100,000 | ln(threshold) / information |")
print("|---|---|---|---|---|")


def told(value: float | None) -> str:
    return "more than 100,000" if value is None else f"{value:,.0f}"


for factor in (1.25, 1.5, 2, 3, 5, 10):
    raised = min(factor * usual, 0.9)
    young = detection_delay(monitor.limit, monitor.threshold, usual, raised, runs=options.runs)
    # Rounds of ten verdicts: an old monitor is simulated ten times faster, and notices up to ten verdicts later.
    old = detection_delay(monitor.limit, monitor.threshold, usual, raised, after=100_000, runs=options.runs, block=10)
    bound = math.log(monitor.threshold) / entropy([raised, 1 - raised], [monitor.limit, 1 - monitor.limit])
    print(f"| {raised:.1%} | {told(young.median)} | {told(young.upper)} | {told(old.median)} | {bound:,.0f} |")

found = alarms(monitor.limit, monitor.threshold, np.full(20_000, monitor.limit), 10 * options.runs, seed=1) >= 0
rate = Rate(int(found.sum()), len(found))
print(f"false alarms at the limit: {rate!r}; proven: at most {1 / monitor.threshold:.3%}")
notes = figures.Figures()
notes.add("false alarms at the limit", rate, "of the runs", at_most=1 / monitor.threshold)
notes.write(options.json)
