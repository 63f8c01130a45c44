"""Seconds of k-NN against scikit-learn's brute force and, where it is installed, faiss (exact, IndexFlatIP).

    python benchmarks/knn.py [--database 262144] [--queries 8192] [--dim 1024] [--json benchmarks/results/knn.json]
    python benchmarks/knn.py --database 1281167 --queries 50000 --only-ours   # the full size: 2.6 GB on disk, 9 to 18 core minutes

The database is a float16 memory map of random vectors, of which ours holds one chunk at a time; the others are handed float32 arrays in
memory, normalised before their clock starts. All search the 20 nearest by cosine, with as many threads as torch has. The defaults take
two to four minutes on two cores. The work of all three grows with database x queries x dim: ours is measured at a quarter and a half of the
database too, so that one sees it, and the last lines say what the full size (ImageNet-1k, 50,000 queries) would take at that.
"""

import argparse
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from amradio.environment import processor
from amradio.neighbours import nearest_rows

FULL = 1_281_167, 50_000, 1024
K = 20


def main() -> None:
    options = parse_arguments()
    others = {} if options.only_ours else rivals()
    sizes = [options.database] if options.only_ours else [options.database // 4, options.database // 2, options.database]
    threads = torch.get_num_threads()
    print(f"database {options.database:,} x {options.dim} in float16, {options.queries:,} queries, k = {K}, {threads} threads", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        database = write_database(Path(folder) / "database.bin", options.database, options.dim)
        queries = torch.randn(options.queries, options.dim, generator=torch.Generator().manual_seed(1))
        result: dict[str, float] = {}
        found = np.empty(0)
        before = peak_megabytes()
        for size in sizes:
            seconds, found = clocked(lambda size=size: nearest_rows(queries, database[:size], K).indices.numpy())
            say(result, f"amradio, {size:,} rows: seconds", seconds)
        say(result, "amradio: memory beyond the queries, MB", peak_megabytes() - before)
        ours = seconds
        wanted = (normalised(np.asarray(database, np.float32)), normalised(queries.numpy())) if others else ()
        times = {}
        for name, search in others.items():
            times[name], other = clocked(lambda search=search: search(*wanted))
            say(result, f"{name}: seconds", times[name])
            say(result, f"{name}: share of equal neighbours", float((np.sort(other, 1) == np.sort(found, 1)).mean()))
    if times:
        say(result, "the faster of the others / amradio", min(times.values()) / ours)
    more = math.prod(FULL) / (options.database * options.queries * options.dim)
    say(result, "the full size is more by", more)
    for name, value in {"amradio": ours, **times}.items():
        say(result, f"{name}: minutes at full size, scaled", value * more / 60)
    if options.json:
        machine = {"cpu": processor(), "cores": os.cpu_count(), "threads": threads, "torch": torch.__version__}
        settings = {"database": options.database, "queries": options.queries, "dim": options.dim, "k": K}
        options.json.write_text(json.dumps({**machine, **settings, **result}, indent=1) + "\n")


def say(result: dict[str, float], name: str, value: float) -> None:
    result[name] = value
    print(f"{name:50} {value:.4g}", flush=True)


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
        print("faiss: not installed (pip install faiss-cpu); left out")
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
    parser.add_argument("--database", type=int, default=262_144)
    parser.add_argument("--queries", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--only-ours", action="store_true", help="no rivals: they need the whole database in memory")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
