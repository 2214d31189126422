"""Other weights of the same function, of which more is proven: balanced, centred, sharpened."""
