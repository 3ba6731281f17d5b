"""Tables to try `configs/table.yaml` on, as Parquet files: no download.

    python benchmarks/tables.py FOLDER

`generated.parquet`: 20,000 records, five numeric columns of known correlations and kinds, and a class. `breast_cancer`
and `wine`: those that scikit-learn holds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

RECORDS = 20_000
CORRELATION = [[1.0, 0.7, -0.4, 0.0], [0.7, 1.0, -0.2, 0.3], [-0.4, -0.2, 1.0, 0.0], [0.0, 0.3, 0.0, 1.0]]
CLASSES = {"a": 0.5, "b": 0.3, "c": 0.2}


def generated() -> pa.Table:
    """Four correlated columns, one skewed and one of whole numbers, and one that is 0 or 1; a class moves them."""
    rng = np.random.default_rng(0)
    kind = rng.choice(list(CLASSES), RECORDS, p=list(CLASSES.values()))
    shift = np.select([kind == "b", kind == "c"], [1.5, -1.5], 0.0)
    normal = rng.multivariate_normal(np.zeros(4), CORRELATION, RECORDS)
    return pa.table(
        {
            "height": 170 + 8 * (normal[:, 0] + shift),
            "weight": np.exp(4.2 + 0.2 * (normal[:, 1] + shift)),
            "children": rng.poisson(np.exp(0.3 + 0.4 * normal[:, 2])),
            "score": normal[:, 3] - 0.5 * shift,
            "member": normal[:, 0] + shift + rng.standard_normal(RECORDS) > 0,
            "kind": kind,
        }
    )


def embedded(name: str) -> pa.Table:
    """One of scikit-learn's tables."""
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")()
    columns = {str(column): found.data[:, i] for i, column in enumerate(found.feature_names)}
    return pa.table(columns | {"kind": found.target_names[found.target].astype(str)})


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path)
    folder = options.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"generated": generated(), **{name: embedded(name) for name in ("breast_cancer", "wine")}}
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
        print(
            f"{folder / name}.parquet: {table.num_rows:,} records, {table.num_columns - 1} columns and the class"
        )


if __name__ == "__main__":
    main()
