"""The parts of an audit: what is asked, what is counted, what is advised, and how a verdict is reached.

`defended.serving.audit` puts them together; `defended.serving.AuditReport` holds the result.
"""
