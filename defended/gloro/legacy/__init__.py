"""Models of the `gloro` library under legacy Keras: its files, read and distrusted, and its live models."""
