"""Last lines of a test run: tests, time, seed, and the slowest tests."""

from collections import Counter, defaultdict

from tests.support.forms import SEED, form

SLOWEST = 10


def summarise(write_line, stats, seconds):
    """Write the summary of a run.

    Args:
        write_line: Called with each line.
        stats: Reports of the run by outcome, as pytest's terminal reporter keeps them.
        seconds: Wall-clock time of the whole run.
    """
    reports = [report for kept in stats.values() for report in kept if hasattr(report, "duration")]
    took = Counter()
    for report in reports:
        took[report.nodeid] += report.duration
    for table in form([slowest], [each_file, slowest]):
        for line in table(took):
            write_line(line)
    outcomes = ", ".join(
        f"{len(kept):,} {outcome}" for outcome, kept in stats.items() if outcome and kept and kept[0] in reports
    )
    write_line(f"{form('short', 'long')} form, seed {SEED}: {outcomes} in {minutes(seconds)}")


def slowest(took):
    """Yield a line for each of the slowest tests."""
    yield f"the {SLOWEST} slowest tests:"
    for nodeid, seconds in took.most_common(SLOWEST):
        yield f"  {seconds:6.1f} s  {nodeid}"


def each_file(took):
    """Yield a line for each file: the number of tests and their total time."""
    files = defaultdict(list)
    for nodeid, seconds in took.items():
        files[nodeid.partition("::")[0]].append(seconds)
    yield "   tests   seconds"
    for name, times in sorted(files.items(), key=lambda item: -sum(item[1])):
        yield f"  {len(times):6,}  {sum(times):8.1f}  {name}"
    yield f"  {len(took):6,}  {took.total():8.1f}  all, added up over the workers"


def minutes(seconds):
    """Format a time: '4 min 5 s'."""
    return f"{int(seconds // 60)} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.1f} s"
