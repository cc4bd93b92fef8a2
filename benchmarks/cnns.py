"""Which CNNs CAStream and MHEX wrap, and whether they compute what they say: writes docs/cnns.md.

    .venv/bin/python benchmarks/cnns.py
    .venv/bin/python benchmarks/cnns.py --match hrnet --out /tmp/cnns.md

Networks run in a process of their own, which is replaced where one takes longer than `--timeout` seconds.
"""

import argparse
import datetime
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from cnn_networks import Network, networks
from models import message, table
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import cnn_truth

HEADER = ["library", "network", "average", "CAStream", "stages", "additions", "MHEX", "blocks", "seconds"]
LIBRARIES = ("torch", "timm", "torchvision", "transformers", "monai")
EQUAL = "equal"


@dataclass
class Row:
    """What is known of a network."""

    library: str
    name: str
    averages: bool = False
    additions: int = 0
    stream: str = "-"
    stages: int = 0
    mhex: str = "-"
    blocks: int = 0
    seconds: float = 0.0

    def cells(self) -> list[str]:
        """The line of the table."""
        average = "yes" if self.averages else "no"
        numbers = [str(self.additions), self.mhex, str(self.blocks or "-"), f"{self.seconds:.0f}"]
        return [self.library, self.name, average, self.stream, str(self.stages or "-"), *numbers]


def main() -> None:
    """Try the networks and write the page."""
    parser = argparse.ArgumentParser(description="Which CNNs CAStream and MHEX wrap.")
    parser.add_argument("--match", default="", help="only networks with this in library and name")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for each network")
    parser.add_argument("--out", type=Path, default=Path("docs/cnns.md"), metavar="FILE")
    args = parser.parse_args()
    start = time.perf_counter()
    chosen = [one for one in networks() if args.match in f"{one.library} {one.name}"]
    rows = []
    for row in tqdm(rows_of(chosen, args.timeout), total=len(chosen)):
        rows.append(row)
        tqdm.write(" | ".join(row.cells()))
        args.out.write_text(text(rows, time.perf_counter() - start))
    print(summary(rows))


def rows_of(chosen: Sequence[Network], timeout: float) -> Iterator[Row]:
    """A row for each network, computed in another process."""
    context = multiprocessing.get_context("spawn")
    pool = context.Pool(1)
    for network in chosen:
        try:
            yield pool.apply_async(row_of, [network]).get(timeout)
        except multiprocessing.TimeoutError:
            pool.terminate()
            pool = context.Pool(1)
            took = f"not tried: took over {timeout:.0f} s"
            yield Row(network.library, network.name, stream=took, mhex=took)
    pool.terminate()


def row_of(network: Network) -> Row:
    """Try both wrappers on a network."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start, row = time.perf_counter(), Row(network.library, network.name)
    try:
        model, images, plain = built(network)
    except Exception as error:  # of any kind: a table has a line for it
        row.stream = row.mhex = f"not built: {message(error)}"
        return row
    row.averages, row.additions = plain.averages, len(plain.additions)

    def stream() -> str:
        difference, row.stages = cnn_truth.check_ca_stream(model, images, plain)
        return verdict(difference)

    def mhex() -> str:
        difference, odd, row.blocks = cnn_truth.check_mhex(model, images, plain)
        return verdict(difference, odd)

    row.stream, row.mhex = refused(stream), refused(mhex)
    row.seconds = time.perf_counter() - start
    return row


def built(network: Network) -> tuple[torch.nn.Module, torch.Tensor, Any]:
    """A network, images and its plain run, at the smallest size at which it runs."""
    for shape in network.shapes:
        try:
            model = cnn_truth.random_network(network.build(), shape)
            images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
            if len(shape) == 3:
                model.image_size = shape[1:]
            return model, images, cnn_truth.run_plain(model, images)
        except Exception:
            if shape is network.shapes[-1]:
                raise
    raise ValueError("no size to try")


def verdict(difference: float, odd: Sequence[str] = ()) -> str:
    """Whether a wrapper is right."""
    if difference > cnn_truth.LIMIT:
        return f"WRONG: {difference:.0e}"
    return f"WRONG: {odd[0]} ({len(odd)})" if odd else EQUAL


def refused(attempt: Callable[[], str]) -> str:
    """What an attempt returned, or why there is nothing."""
    try:
        return attempt()
    except ValueError as error:
        return f"refused: {' '.join(str(error).split()).replace('|', '/')[:160]}"
    except Exception as error:
        return f"{type(error).__name__}: {message(error)}"


def summary(rows: Sequence[Row]) -> str:
    """How many there are, and how many are right."""
    lines = []
    for library in (*dict.fromkeys(row.library for row in rows), "all"):
        own = [row for row in rows if library in (row.library, "all")]
        average, sums = [row for row in own if row.averages], [row for row in own if row.additions]
        right = sum(row.stream == EQUAL for row in average), sum(row.mhex == EQUAL for row in sums)
        shares = [share(right[0], len(average)), share(right[1], len(sums))]
        lines.append([library, str(len(own)), str(len(average)), shares[0], str(len(sums)), shares[1]])
    return table(["library", "networks", "with a global average", "CAStream", "with additions", "MHEX"], lines)


def share(part: int, whole: int) -> str:
    """A number, with its percentage."""
    return f"{part} ({part / whole:.0%})" if whole else "-"


def text(rows: Sequence[Row], seconds: float) -> str:
    """The page."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    parts = [
        "# CNNs",
        "One small network of every family of CNNs, with random weights, in float64: what\n"
        "[CAStream](ca-stream.md) and [MHEX](mhex.md) make of it.",
        summary(rows),
        "- average: the module behind all maps reads the average of a map, as hooks on the network see it.\n"
        "- CAStream is equal if a stream of the last stage alone, its query zero and its map the identity, returns\n"
        "  the network's own logits, and the attention of all stages is that of the formula, from hooked outputs.\n"
        "- additions: sums of two maps of one shape, as seen below torch's functions.\n"
        "- MHEX is equal if without gates it returns the network's own logits, `y = E z`, each z is that of the last\n"
        "  such sum in the block, and x is not the branch with more convolutions; and if with gates its logits and\n"
        "  those of all heads are those of a run in which these sums are replaced below torch's functions.\n"
        "- Where it says that z is of no sum, the reference could not judge: it sees no additions of maps of 1 x 1,\n"
        "  and none of tokens.\n"
        f"- The limit of all differences is {cnn_truth.LIMIT:.0e}, relative to the largest value.",
        table(HEADER, [row.cells() for row in rows]),
        f"{datetime.date.today()}, {versions}, {seconds / 60:.0f} minutes on the CPU;\n`python benchmarks/cnns.py`.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
