"""Start to first prediction against ``import torch``: whole processes, interleaved, as a ratio.

Example:
    python benchmarks/startup.py vlkd-out/bundle

Prints one JSON object. Both kinds of process run in this Python, so torch must be installed here.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

from vlkd_bench.machine import read_machine

FIRST = (
    "import sys, numpy as np\n"
    "from vlkd_runtime import Classifier\n"
    "with Classifier.load(sys.argv[1]) as classifier:\n"
    "    size = classifier.preprocess.height, classifier.preprocess.width\n"
    "    classifier.predict(np.zeros((*size, 3), np.uint8))\n"
)
ROUNDS = 9


def seconds(words: list[str]) -> float:
    """Wall time of one process, from start to exit."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Run both in turn and print medians and the median ratio of the pairs."""
    bundle = sys.argv[1]
    words = ["-c", FIRST, bundle], ["-c", "import torch"]
    pairs = [(seconds(words[0]), seconds(words[1])) for _ in range(ROUNDS + 1)]
    pairs = pairs[1:]  # the first pair warms the disk cache
    print(
        json.dumps(
            {
                "first_prediction_s": round(statistics.median(first for first, _ in pairs), 3),
                "import_torch_s": round(statistics.median(torch for _, torch in pairs), 3),
                "ratio": round(statistics.median(first / torch for first, torch in pairs), 3),
                "rounds": ROUNDS,
                "command": "python benchmarks/startup.py BUNDLE",
                "machine": read_machine().describe(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
