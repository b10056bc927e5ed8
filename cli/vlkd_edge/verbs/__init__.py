"""The verbs. Every heavy import waits inside its verb, so that ``--help`` is quick and needs no torch."""
