"""``python -m bench``: measure taskdiag beside those who do the same today."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

from . import jobs, limits
from .checks import CheckError
from .contender import RunError, note
from .host import Host, Missing
from .limits import LimitError
from .peers import BuildError
from .population import Population


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # A polite end, so that whatever was made is undone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with Host() as host:
        for (tasks, threads), some in _by_population(options).items():
            with limits.raised(tasks, threads), Population(host.toolbox, threads) as people:
                people.grow(tasks)
                members = people.pids()
                for job in some:
                    try:
                        r = jobs.run(job, host, members, options.runs)
                    except (Missing, BuildError) as e:
                        note(f"{job.name}: skip {e}")
                        continue
                    except (CheckError, RunError) as e:
                        note(f"{job.name}: FAIL {str(e)[:1500]}")
                        continue
                    print(f"{tasks}x{threads} {job.name:24} {r['ours']['median']*1e3:9.2f} ms {r['peer']['median']*1e3:9.2f} ms ratio {r['ratio']:.2f} {r['ratio_spread']} target {r['target']} {r['met']}",flush=True)
    return 0

def _by_population(options):
    found={}
    for job in jobs.JOBS:
        if options.job and job.name not in options.job: continue
        found.setdefault((options.tasks or job.tasks, options.threads or job.threads),[]).append(job)
    return found

def _parser():
    p=argparse.ArgumentParser()
    p.add_argument("--tasks",type=int); p.add_argument("--threads",type=int); p.add_argument("--job",action="append"); p.add_argument("--runs",type=int,default=7)
    return p

if __name__ == "__main__":
    sys.exit(main())
