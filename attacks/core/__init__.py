"""What all attacks share: their interface, their arguments, their batches and their balls."""
