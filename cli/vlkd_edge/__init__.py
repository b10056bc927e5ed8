"""The ``vlkd-edge`` command: verbs, configuration, targets, and the build that puts the wings together."""
