"""Published methods that models are compared with, each in a file that stands alone.

Read ``published`` first, which names them and runs one by its name, then ``dictionary``, ``siren``
or ``stitched``. Methods that are used to restore volumes are models, and live in
``isochunk.models``; the interpolations that every evaluation includes do too.
"""
