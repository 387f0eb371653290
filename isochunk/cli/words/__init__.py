"""What commands found, in words for people.

Each function takes what ``--json`` prints and returns what a terminal shows: so neither holds what
the other has not.
"""
