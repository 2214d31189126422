"""Other weights for the same function, about which more is proven: balanced, centred, sharpened."""
