"""Published methods that models are compared with, each fitted or learnt on the spot."""
