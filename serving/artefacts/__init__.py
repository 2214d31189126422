"""An exported model on disk: what it consists of, and how it is opened, verified and signed."""
