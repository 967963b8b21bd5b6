"""Random blobs of a DORN caffemodel under the names of the released prototxts."""

import numpy as np


def released_blobs(style, width=2, bins=5, pooled=1, branches=4, seed=0):
    """Random blobs of a caffemodel, named as the prototxt of KITTI or of NYU names its layers."""
    generator = np.random.default_rng(seed)
    content = {}

    def conv(name, inputs, outputs, kernel):
        content[f"{name}/0"] = generator.normal(0, (inputs * kernel**2) ** -0.5, (outputs, inputs, kernel, kernel))

    def norm(name, channels):
        for index, (low, high) in enumerate(((0.3, 0.8), (-0.2, 0.2), (-0.2, 0.2), (0.5, 1.5))):
            content[f"{name}/bn/{index}"] = generator.uniform(low, high, (1, channels, 1, 1))

    def unit(name, inputs, outputs, kernel):
        conv(name, inputs, outputs, kernel)
        norm(name, outputs)

    def head(name, inputs, outputs, kernel=1):
        conv(name, inputs, outputs, kernel)
        content[f"{name}/1"] = generator.normal(0, 0.1, outputs)

    unit("conv1_1_3x3_s2", 3, width, 3)
    unit("conv1_2_3x3", width, width, 3)
    unit("conv1_3_3x3", width, 2 * width, 3)
    inputs = 2 * width
    for stage, repeats in ((2, 3), (3, 4), (4, 23), (5, 3)):
        middle = width * 2 ** (stage - 2)
        for block in range(1, repeats + 1):
            base = f"conv{stage}_{block}"
            unit(f"{base}_1x1_reduce", inputs, middle, 1)
            unit(f"{base}_3x3", middle, middle, 3)
            unit(f"{base}_1x1_increase", middle, 4 * middle, 1)
            if block == 1:
                unit(f"{base}_1x1_proj", inputs, 4 * middle, 1)
            inputs = 4 * middle
    kitti = style == "kitti"
    wide = 8 * width
    fc = "global_fc" if kitti else "ip1/depth"
    content[f"{fc}/0"] = generator.normal(0, (inputs * pooled) ** -0.5, (wide, inputs * pooled))
    content[f"{fc}/1"] = generator.normal(0, 0.1, wide)
    head("depth/conv6_1" if kitti else "conv6_1/soft", wide, wide)
    for n in range(1, branches + 1):
        head(f"aspp_{n}" if kitti else f"aspp_{n}/soft", inputs, wide, 1 if n == 1 else 3)
        head(f"depth/conv6_{n + 1}" if kitti else f"conv6_{n + 1}/soft", wide, wide)
    head("conv7" if kitti else "conv7/soft", (branches + 1) * wide, 4 * wide)
    head("conv8", 4 * wide, 2 * bins)
    return content
