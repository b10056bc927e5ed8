"""Makes a classifier like one from elsewhere: ImageNet features, a linear probe on source domains, float ONNX.

It stands for what users bring to ``vlkd-edge compress``: exported from timm, float input in NCHW, its normalisation
nowhere in the graph. The backbone has real ImageNet weights (the ``weights`` extra); only the last layer is trained.

    python benchmarks/probe_classifier.py DATA --held-out sketch --out probe.onnx
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

SIZE, STEPS, PER_CLASS = 224, 300, 60


def main() -> int:
    """Train the probe and export it; prints its accuracy on the training images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder laid out as <domain>/<class>/<image>")
    parser.add_argument("--held-out", required=True, help="domains to leave out, with commas between them")
    parser.add_argument("--out", type=Path, required=True, help="where the ONNX file goes")
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="images of each class and domain")
    asked = parser.parse_args()

    import torch

    from vlkd_bench.samples import Sample
    from vlkd_distill.data import scan
    from vlkd_distill.quiet import quiet
    from vlkd_distill.specs import StudentSpec
    from vlkd_distill.students import create
    from vlkd_runtime.preprocess import PreprocessSpec, prepare

    torch.manual_seed(0)
    dataset = scan(asked.data)
    taken: dict[tuple[str, int], list[Sample]] = {}
    for sample in dataset.of(dataset.sources(asked.held_out.split(","))):
        group = taken.setdefault((sample.domain, sample.label), [])
        if len(group) < asked.per_class:
            group.append(sample)
    samples = [sample for group in taken.values() for sample in group]
    student = create(StudentSpec("tf_efficientnet_lite0", SIZE, "package", 0, {}), 8)
    backbone = student.backbone.eval()
    spec = PreprocessSpec(SIZE, SIZE)
    features = []
    with torch.inference_mode():
        for start in range(0, len(samples), 16):
            images = np.stack([prepare(sample.path, spec) for sample in samples[start : start + 16]])
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
            features.append(backbone((pixels - 127.5) / 127.5))
    inputs = torch.cat(features).clone()
    labels = torch.tensor([sample.label for sample in samples])
    probe = torch.nn.Linear(inputs.shape[1], len(dataset.classes))
    optimiser = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(STEPS):
        loss = torch.nn.functional.cross_entropy(probe(inputs), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    right = float((probe(inputs).argmax(1) == labels).float().mean())
    with quiet():
        torch.onnx.export(
            torch.nn.Sequential(backbone, probe).eval(),
            (torch.zeros(1, 3, SIZE, SIZE),),
            asked.out,
            dynamo=True,
            opset_version=20,
            external_data=False,
            input_names=["input"],
            output_names=["logits"],
        )
    print(f"{len(samples)} source images, {right:.1%} of them right; mean and std 127.5; wrote {asked.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
