"""What holds for a Keras network whatever defends it: its identity, its exact values, and what it is given."""
