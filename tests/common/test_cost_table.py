"""The table of what networks cost, beside what was published for them."""

import pandas as pd

from common.results.tables import Results, cost_table

COSTS = pd.DataFrame(
    {
        "network": ["small", "small", "big"],
        "sequence": [None, "gru", None],
        "dim": pd.array([None, 64, None], "Int64"),
        "parameters": [860_318, 1_000_000, 85_419_264],
        "macs": [224_211_456, 300_000_000, 22_434_816_000],
        "part": ["Detectors", "Detectors", "Encoders"],
    }
)
PUBLISHED = pd.DataFrame(
    [
        ("set/small", "set", "psds1", 39.52),
        ("set/small+gru-64", "set", "psds1", 41.0),
        ("set/small", "other set", "psds1", 1.0),
        ("set/big", "set", "psds1", 99.0),
    ],
    columns=["system", "split", "metric", "value"],
)


def test_scores_stand_beside_the_networks_they_belong_to():
    parts = cost_table(Results(PUBLISHED, [], COSTS), "Detectors", "set/", "psds1").split("\n\n")
    assert parts[0] == "**Detectors**"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in parts[1].splitlines()]
    assert cells[0][-1] == "PSDS1, published, %"
    assert cells[2] == ["small", "–", "–", "0.86", "0.22", "39.52"]
    assert cells[3] == ["small", "gru", "64", "1.00", "0.30", "41.00"]


def test_networks_without_heads_have_no_score():
    encoders = cost_table(Results(PUBLISHED, [], COSTS), "Detectors", "set/", "psds1").split("\n\n")[3]
    assert "published" not in encoders
    assert "99" not in encoders
    assert "85.42" in encoders
