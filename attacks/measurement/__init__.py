"""How far a model can be degraded: measured, recorded, plotted and monitored during training."""
