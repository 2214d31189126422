"""An audit as JUnit XML, so that a pipeline shows its conditions as tests."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from defended.serving.auditing.figures import AuditFigures

# What XML 1.0 has no way to write.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: AuditFigures) -> str:
    """Return an audit as JUnit XML: one test for each condition, and one that no certificate was seen broken.

    A warning passes, and says so in its output; without conditions, a skipped test says that nothing was judged.
    """
    suite = ET.Element(
        "testsuite",
        name=_text(f"defended audit of {report.subject.name or report.subject.location}"),
        timestamp=report.created,
    )
    sound = ET.SubElement(suite, "testcase", classname="defended.audit", name="the certificate holds", time="0")
    for alarm in report.alarms:
        ET.SubElement(sound, "failure", type="alarm", message=_text(alarm)).text = _text(alarm)
    for decision in report.decisions:
        case = ET.SubElement(
            suite, "testcase", classname="defended.audit.conditions", time="0",
            name=f"{decision.metric} {decision.limit} ({decision.sense})",
        )  # fmt: skip
        if decision.status == "FAIL":
            ET.SubElement(case, "failure", type="condition", message=_text(decision.message)).text = decision.message
        else:
            ET.SubElement(case, "system-out").text = _text(f"{decision.status}: {decision.message}")
    if not report.decisions:
        case = ET.SubElement(suite, "testcase", classname="defended.audit.conditions", time="0", name="not judged")
        ET.SubElement(
            case, "skipped", message=f"not judged: no conditions were set. To begin with: {report.suggestion}"
        )
    if report.warnings:
        case = ET.SubElement(suite, "testcase", classname="defended.audit", time="0", name="warnings")
        ET.SubElement(case, "system-out").text = _text("\n".join(f"WARN: {warning}" for warning in report.warnings))
    for name, tag in (("tests", "."), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(sum(case.find(tag) is not None for case in suite)))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _text(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
