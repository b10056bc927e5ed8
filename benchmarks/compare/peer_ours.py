"""This project's runtime, on one variant of a bundle: `predict`, with probabilities and their order."""

from __future__ import annotations

from typing import Any

from serving import Peer, serve

from vlkd_runtime import Classifier


def load(setup: dict[str, Any]) -> Peer:
    """Open the bundle."""
    classifier = Classifier.load(
        setup["bundle"], engine="ort-cpu", variant=setup["variant"], threads=setup["threads"]
    )

    def call(image: Any) -> int:
        return classifier.predict(image).index

    return Peer(("numpy", "pillow", "onnxruntime"), lambda image: image, call, call)


if __name__ == "__main__":
    serve(load)
