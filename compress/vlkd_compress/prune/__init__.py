"""Takes channels and weights out of a student: which go, what that costs, and what is left whole.

`settings` and `sparsegraph` need no torch; the other modules do, and are imported only to do work.
"""
