"""Seconds of k-NN against scikit-learn's brute force and, where it is installed, faiss (exact, IndexFlatIP).

    python benchmarks/knn.py [--database 1281167] [--queries 50000] [--dim 1024] [--json benchmarks/results/knn.json]

The database is a float16 memory map of random vectors, of which ours holds one chunk at a time; the others are handed float32 arrays in
memory, normalised before their clock starts. All search the 20 nearest by cosine, with as many threads as torch has. The defaults are
scaled down; time grows with database x queries x dim, and the last line says by how much the full size is more.
"""

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from amradio.evaluation.knn import nearest_rows

FULL = 1_281_167 * 50_000 * 1024
K = 20


def main() -> None:
    options, others = parse_arguments(), rivals()
    print(
        f"database {options.database:,} x {options.dim} in float16, {options.queries:,} queries, k = {K}, {torch.get_num_threads()} threads"
    )
    with tempfile.TemporaryDirectory() as folder:
        database = write_database(Path(folder) / "database.bin", options.database, options.dim)
        queries = torch.randn(options.queries, options.dim, generator=torch.Generator().manual_seed(1))
        before = peak_megabytes()
        seconds, found = clocked(lambda: nearest_rows(queries, database, K).indices.numpy())
        result: dict[str, object] = {"amradio": seconds, "amradio memory MB": peak_megabytes() - before}
        wanted = normalised(np.asarray(database, np.float32)), normalised(queries.numpy())
        for name, search in others.items():
            result[name], other = clocked(lambda search=search: search(*wanted))
            result[f"{name}: same neighbours"] = float((np.sort(other, 1) == np.sort(found, 1)).mean())
    times = {name: float(value) for name, value in result.items() if name in ("amradio", *others)}  # type: ignore[arg-type]
    result["ratio to the faster"] = min(value for name, value in times.items() if name != "amradio") / times["amradio"]
    result["full size is more by"] = FULL / (options.database * options.queries * options.dim)
    for name, value in result.items():
        print(f"{name:40} {value:.4g}")
    if options.json:
        machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "machine": platform.machine(), "torch": torch.__version__}
        options.json.write_text(json.dumps({**machine, **{k: str(v) for k, v in vars(options).items()}, **result}, indent=1) + "\n")


def write_database(file: Path, rows: int, dim: int) -> np.ndarray:
    """A memory map float16 [rows, dim], written in pieces."""
    draws = torch.Generator().manual_seed(0)
    with file.open("wb") as out:
        for start in range(0, rows, 8192):
            out.write(torch.randn(min(8192, rows - start), dim, generator=draws).half().numpy().tobytes())
    return np.memmap(file, np.float16, "r", shape=(rows, dim))


def rivals() -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    found: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"scikit-learn": by_scikit_learn}
    try:
        import faiss  # noqa: F401
    except ImportError:
        print("faiss is not installed; left out")
        return found
    return found | {"faiss": by_faiss}


def by_scikit_learn(database: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Euclidean on vectors of length 1, which has a faster path than its cosine, and the same neighbours."""
    return NearestNeighbors(n_neighbors=K, algorithm="brute").fit(database).kneighbors(queries, return_distance=False)


def by_faiss(database: np.ndarray, queries: np.ndarray) -> np.ndarray:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(database.shape[1])
    index.add(database)
    return index.search(queries, K)[1]


def normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clocked(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=int, default=65536)
    parser.add_argument("--queries", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
