"""Run lives and count their failures: `python -m tests.simulation [replicas] FIRST COUNT [asyncio|trio]`."""

import sys
import time
import traceback
from collections import Counter

from tests.simulation.life import live
from tests.simulation.replicas import live_replicas, replicas_story
from tests.simulation.story import story


def main() -> int:
    """Run lives; return 1 if any of them failed."""
    arguments = sys.argv[1:]
    of_replicas = arguments[0] == "replicas"
    first, count, *backends = arguments[of_replicas:]
    first, count, backends = int(first), int(count), backends or ["asyncio", "trio"]
    broken: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    began = time.perf_counter()
    for number, seed in enumerate(range(first, first + count)):
        backend = backends[number % len(backends)]
        try:
            life = live_replicas(seed, backend) if of_replicas else live(seed, backend)
        except Exception:  # noqa: BLE001  # an error of the simulation is counted too
            what = "the simulation itself fails: " + traceback.format_exc().strip().splitlines()[-1]
            if what not in broken:
                print(seed, backend, traceback.format_exc())
        else:
            if life.oracle.violation is None:
                continue
            what = f"{life.oracle.violation.guarantee}: {life.oracle.violation.sentence}"
            if what not in broken:
                print(replicas_story(life) if of_replicas else story(life), "\n", flush=True)
        broken[what] += 1
        examples.setdefault(what, []).append(f"{seed} {backend}")
    seconds = time.perf_counter() - began
    for what, times in broken.most_common():
        print(f"{times:6} {what}: {', '.join(examples[what][:12])}")
    print(f"{count} lives, {broken.total()} failed, {count / seconds:.1f} lives a second")
    return 1 if broken else 0


sys.exit(main())
