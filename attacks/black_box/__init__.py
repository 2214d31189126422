"""Attacks that see scores or decisions only."""
