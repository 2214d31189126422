"""What every attack is and obeys: its interface, its arguments, its batches and its balls."""
