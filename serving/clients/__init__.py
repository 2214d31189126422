"""A client for a server that serves an artefact, and the log of what was asked."""
