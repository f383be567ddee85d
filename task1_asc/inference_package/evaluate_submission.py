"""Score a system on the test split and write its predictions for the evaluation set.

Run:  python evaluate_submission.py --submission_name Team_INST_task1 --submission_index 1 \
          --dev_set_dir FOLDER --eval_set_dir FOLDER
FOLDER of the development set holds meta.csv and audio/, that of the evaluation set the table
evaluation_setup/fold1_test.csv (tabs; filename, device_id) and the files it names. Writes into
predictions/<name>_<index>/: test_accuracy.json (per cent; macro is the mean of the class accuracies),
output.csv (tabs; filename, scene_label, a probability per class), model_state_dict.pt.
"""

import argparse
import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.data.manifest import DataError, read_table
from common.files import write_atomically, write_json, write_text


def predict(
    system, folder: Path, rows: pd.DataFrame, device_column: str, use_cuda: bool
) -> tuple[np.ndarray, list[str]]:
    """Return (logits (N, K), class order) of the files in `rows`."""
    paths = [str(folder / name) for name in rows.filename]
    logits, class_order = system.predict(paths, list(rows[device_column]), None, use_cuda)
    return torch.stack(logits).float().cpu().numpy(), list(class_order)


def development_rows(system, folder: Path) -> pd.DataFrame:
    """Return the rows of resources/test.csv with their device from the meta.csv of the development set."""
    listed = read_table(Path(system.__file__).parent / "resources" / "test.csv", ("filename", "scene_label"))
    meta = read_table(folder / "meta.csv", ("filename", "source_label"))
    rows = listed.merge(meta[["filename", "source_label"]], on="filename", how="left")
    if rows.source_label.isna().any():
        raise DataError(
            f"{folder / 'meta.csv'}: has no row for {rows.filename[rows.source_label.isna()].iloc[0]} of "
            "resources/test.csv; give the development set this package was made for."
        )
    return rows


def accuracies(logits: np.ndarray, labels: pd.Series, class_order: list[str]) -> dict:
    """Return per cent over all clips (the challenge's file) and, named, the mean over classes."""
    correct = pd.Series(np.array(class_order)[logits.argmax(1)] == labels.to_numpy())
    return {
        "Test Accuracy": round(100 * float(correct.mean()), 2),
        "Macro Accuracy": round(100 * float(correct.groupby(labels.to_numpy()).mean().mean()), 2),
    }


def output_table(rows: pd.DataFrame, logits: np.ndarray, class_order: list[str]) -> pd.DataFrame:
    """Return filename, decision and probabilities in class order."""
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    table = pd.DataFrame(probabilities, columns=class_order)
    table.insert(0, "scene_label", [class_order[i] for i in logits.argmax(1)])
    table.insert(0, "filename", rows.filename.to_numpy())
    return table


def evaluate(args: argparse.Namespace) -> None:
    name = f"{args.submission_name}_{args.submission_index}"
    system, out = importlib.import_module(f"{args.submission_name}.{name}"), Path("predictions") / name
    use_cuda = not args.no_cuda
    rows = development_rows(system, args.dev_set_dir)
    logits, class_order = predict(system, args.dev_set_dir, rows, "source_label", use_cuda)
    if args.test_logits:
        table = pd.concat([rows[["filename"]], pd.DataFrame(logits, columns=class_order)], axis=1)
        write_text(args.test_logits, table.to_csv(index=False, float_format="%.9g"))
    scores = accuracies(logits, rows.scene_label, class_order)
    write_json(out / "test_accuracy.json", scores)
    print(
        f"{name}: {scores['Test Accuracy']:.2f} % of the {len(rows)} test clips, "
        f"macro {scores['Macro Accuracy']:.2f} %"
    )

    rows = read_table(args.eval_set_dir / "evaluation_setup" / "fold1_test.csv", ("filename", "device_id"))
    logits, order = predict(system, args.eval_set_dir, rows, "device_id", use_cuda)
    if order != class_order:
        raise DataError(
            f"{name}: class order {order} on the evaluation set, {class_order} on the test split."
        )
    table = output_table(rows, logits, class_order)
    write_text(out / "output.csv", table.to_csv(sep="\t", index=False, float_format="%.6g"))
    state = system.load_model().model.state_dict()
    write_atomically(out / "model_state_dict.pt", lambda path: save_state(state, path))
    print(f"{name}: wrote {out / 'output.csv'} ({len(rows)} clips)")


def save_state(state: dict, path: Path) -> None:
    with open(path, "wb") as file:  # a file object, so that the temporary name does not get into the content
        torch.save(state, file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--submission_name", required=True)
    parser.add_argument("--submission_index", type=int, default=1)
    parser.add_argument("--dev_set_dir", type=Path, required=True)
    parser.add_argument("--eval_set_dir", type=Path, required=True)
    parser.add_argument("--no_cuda", action="store_true", help="compute on the CPU even if there is a GPU")
    parser.add_argument(
        "--test_logits", type=Path, help="write the logits of the test split to this file as well"
    )
    try:
        evaluate(parser.parse_args())
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
