"""How far a model can be degraded: measured, recorded, drawn and watched during training."""
