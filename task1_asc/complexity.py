"""Print what the network of a config costs, layer by layer, against the limits of the challenge.

Flow: config → network → **table**.
Run:  python -m task1_asc.complexity [--config task1_asc/configs/dcase2025/general.yaml] [--dtype int8]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.complexity import BYTES_PER_PARAMETER, MAX_BYTES, MAX_MACS, complexity, limit_violations
from task1_asc.config import CONFIGS, load_config


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIGS / "dcase2025/general.yaml")
    parser.add_argument("--dtype", choices=BYTES_PER_PARAMETER, default="fp16", help="how the weights are stored")
    parser.add_argument("--classes", type=int, default=10)
    args, overrides = parser.parse_known_args(argv)
    try:
        config, _ = load_config(args.config, overrides)
        front_end = config.front_end()
        shape = (1, 1, front_end.n_mels, front_end.n_frames(config.data.format.n_samples))
        found = complexity(config.model(args.classes), shape, args.dtype)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(found.layers.to_string(index=False))
    print(f"input {shape}: {found.parameters:,} parameters, {found.macs:,} MACs (limit {MAX_MACS:,}), "
          f"{found.bytes:,} bytes in {found.dtype} (limit {MAX_BYTES:,})")  # fmt: skip
    raise SystemExit("\n".join(limit_violations(found)) or 0)


if __name__ == "__main__":
    main()
