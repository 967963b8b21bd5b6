"""Every op once, forward and backward, small, on every backend that the GPU has: the program that `make gpu-sanitize`
watches."""

import torch

from mdepth_fast import benchmark as core

SIZE = (2, 37, 70)
DEVICE = torch.device("cuda")


def main() -> None:
    for case in core.CASES.values():
        for variant in ("cuda", "triton", "nvrtc"):
            reason = core.unavailable(case, variant, DEVICE)
            if reason:
                print(f"{case.name} {variant}: not here: {reason}")
                continue
            size = (2, 32, 64) if isinstance(case.call, str) else SIZE  # as networks take it
            _, measurement = core.prepare(case, variant, *size, device=DEVICE)
            print(f"{case.name} {variant}: error {measurement.error:.1e}")


if __name__ == "__main__":
    main()
