"""An exported model on disk: what it consists of, and how it is verified, opened and signed."""
