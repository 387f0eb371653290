"""Networks, one file each, and what makes any of them a function from box to box.

Nothing here reads a volume. Read ``interface`` for what other rooms see, ``interpolation`` for a
model without weights, ``network`` for what every network answers, ``tiled_network`` and ``srunet``
for one written once for training and exact tiles, ``registry`` for all there are, ``tiling`` and
``predictor`` for how they are run, ``load`` for the way in; ``user_model`` and ``traced`` for
networks of users.
"""
