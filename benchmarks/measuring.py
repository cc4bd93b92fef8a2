"""Time and memory of a call, and what the scripts that measure them share."""

import argparse
import gc
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

Run = Callable[[], object]

clock: Callable[[], float] = time.perf_counter  # time.process_time, where others use the machine, too

SLOW = 5  # forwards; what takes longer runs in fewer rounds
SLOW_REPEATS = 3


class Spread(NamedTuple):
    """Median and quartiles; formatted as "1.02 (0.99-1.06)"."""

    middle: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.middle:{spec}} ({self.low:{spec}}-{self.high:{spec}})"


def spread(values: list[float]) -> Spread:
    """Median and quartiles of one value or more."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


class Timing(NamedTuple):
    """Seconds of a call, and of the plain forward passes just before and just after it."""

    seconds: float
    before: float
    after: float

    @property
    def ratio(self) -> float:
        """The call in plain forward passes; the two around it share the moment's speed of the machine."""
        return self.seconds / ((self.before + self.after) / 2)


def enough(ratios: list[float], repeats: int) -> bool:
    """Has a method of these ratios run often enough? Slow ones run less often."""
    return len(ratios) >= repeats or (len(ratios) >= SLOW_REPEATS and statistics.median(ratios) > SLOW)


def rounds(plain: Run, methods: Mapping[str, Run], repeats: int, device: str) -> Iterator[tuple[str, list[Timing]]]:
    """Run every method once a round, in a new random order, between plain forwards.

    Yields the method's name and its timings so far after each run.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in methods}
    for turn in range(repeats):
        order = [name for name in methods if not enough([one.ratio for one in timings[name]], repeats)]
        random.Random(turn).shuffle(order)
        before = seconds(plain, device)
        for name in order:
            taken = seconds(methods[name], device)
            after = seconds(plain, device)
            timings[name].append(Timing(taken, before, after))
            before = after
            yield name, timings[name]


def timed(what: str, plain: Run, runs: Mapping[str, Run], repeats: int, device: str) -> dict[str, list[Timing]]:
    """The timings of all rounds by method, with a progress bar."""
    timings: dict[str, list[Timing]] = {}
    with tqdm(total=len(runs) * repeats, desc=what, unit="run") as bar:
        for name, found in rounds(plain, runs, repeats, device):
            timings[name] = found
            bar.update()
    return timings


def seconds(run: Run, device: str) -> float:
    """Seconds that a call takes."""
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


def synchronize(device: str) -> None:
    """Wait for the GPU, if it is one."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def peak_memory(run: Run, device: str, times: int = 1) -> int:
    """The most bytes that tensors took during a call above what they took before it; the largest of some calls."""
    measure = _peak_on_cpu if device == "cpu" else _peak_on_gpu
    return max(measure(run, device) for _ in range(times))


def _peak_on_gpu(run: Run, device: str) -> int:
    gc.collect()
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(run: Run, _: str) -> int:
    """From the profiler's allocations.

    Its running sum misleads where the call frees what an earlier profiled call left behind (reference cycles): such
    memory was there before, so only what the call allocated itself is subtracted when it is freed.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it reports every start and stop
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    sizes: dict[int, int] = {}
    total = peak = 0
    for _time, address, size in sorted(_allocations(record), key=lambda event: event[0]):
        if size > 0:
            sizes[address] = size
            total += size
        else:
            total -= sizes.pop(address, 0)
        peak = max(peak, total)
    return peak


def _allocations(record: profile) -> Iterator[tuple[int, int, int]]:
    """Time, address and bytes of each allocation; the bytes are negative where it is freed."""
    results: Any = record.profiler
    events = results.kineto_results.experimental_event_tree()
    while events:
        event = events.pop()
        events.extend(event.children)
        if event.tag == _EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size


def make_parser(description: str, repeats: int) -> argparse.ArgumentParser:
    """The command line with the options that the scripts share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="FOLDER")
    return parser


def machine(device: str) -> str:
    """The processor or GPU, and the number of threads."""
    name = platform.processor() or platform.machine() if device == "cpu" else torch.cuda.get_device_name()
    return f"{name}, {torch.get_num_threads()} threads"


def write_page(args: argparse.Namespace, name: str, text: str) -> None:
    """Write NAME-DEVICE.md."""
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name}-{args.device.split(':')[0]}.md").write_text(text + "\n")
