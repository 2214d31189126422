"""A user's own network, before any training: what a certificate will make of it, and the same made certifiable."""

from defended.adapting.adapt import Adaptation, adapt, adaptation
from defended.adapting.diagnosis import Diagnosis, diagnose
from defended.adapting.plan import Change
from defended.adapting.scales import Advice

__all__ = ["Adaptation", "Advice", "Change", "Diagnosis", "adapt", "adaptation", "diagnose"]
