"""Measure a system by the rule of the challenge, for every device; fails where a limit is exceeded.

Run:  python test_complexity.py --submission_name Team_INST_task1 --submission_index 1
Writes predictions/<name>_<index>/complexity.json: {"per_device": {device: {"MACs", "Params"}}, "max_MACs",
"max_Params"}; Params is the memory of the parameters in bytes.
"""

import argparse
import importlib
import sys
from pathlib import Path

from common.complexity import MAX_BYTES, MAX_MACS, complexity, parameter_bytes
from common.files import write_json

DEVICES = ("a", "b", "c", *(f"s{i}" for i in range(1, 11)))


def measure(name: str, index: int) -> dict:
    """Return the content of complexity.json, from the input that the system makes of resources/dummy.wav."""
    system = importlib.import_module(f"{name}.{name}_{index}")
    dummy = Path(system.__file__).parent / "resources" / "dummy.wav"
    model, found, counted = system.load_model(), {}, {}
    for device in DEVICES:
        shape = tuple(system.load_inputs([str(dummy)], [device], model)[0].shape)
        network = system.get_model_for_device(model, device)
        key = (id(network), shape)  # devices that share a network cost the same
        if key not in counted:
            counted[key] = {"MACs": complexity(network, shape).macs, "Params": parameter_bytes(network)}
        found[device] = counted[key]
    return {
        "per_device": found,
        **{f"max_{key}": max(one[key] for one in found.values()) for key in ("MACs", "Params")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--submission_name", required=True)
    parser.add_argument("--submission_index", type=int, default=1)
    args = parser.parse_args()
    system = f"{args.submission_name}_{args.submission_index}"
    found = measure(args.submission_name, args.submission_index)
    write_json(Path("predictions") / system / "complexity.json", found)
    print(
        f"{system}: {found['max_MACs']:,} of {MAX_MACS:,} MACs, "
        f"{found['max_Params']:,} of {MAX_BYTES:,} bytes"
    )
    for key, unit, limit in (("MACs", "MACs", MAX_MACS), ("Params", "bytes of parameters", MAX_BYTES)):
        over = [device for device, one in found["per_device"].items() if one[key] > limit]
        if over:
            sys.exit(
                f"{system}: {found['max_' + key]:,} {unit} are above the limit of {limit:,} for the devices "
                f"{', '.join(over)}; submit a smaller network."
            )


if __name__ == "__main__":
    main()
