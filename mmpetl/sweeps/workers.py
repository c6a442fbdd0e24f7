# SPDX-License-Identifier: Apache-2.0
"""Running the trials of a sweep, each in a worker process that is reused.

Several machines or the jobs of a Slurm array do the same on one folder: claims on disk say who runs what.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from ..weights.io import write_json
from .claims import Claim
from .plan import SweepPlan, Unit, startable, units
from .trial import FAILED, Result, Trial, describe, read_result, write_result

#: Seconds between looks at the folder while other workers hold everything that could run.
PATIENCE = 5.


class Worker:
    """A process that runs trials one after the other; a new one is started when it dies, fails or has run many.

    Args:
        gpu: The only GPU that it shall see.
    """

    #: Trials after which the process is replaced, so that nothing it leaks can grow.
    LIFE = 50

    def __init__(self, gpu: Optional[int] = None) -> None:
        root = str(Path(__file__).resolve().parents[2])  # of a checkout that is not installed
        self.env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')])))
        if gpu is not None:
            visible = [g for g in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if g]
            self.env['CUDA_VISIBLE_DEVICES'] = visible[gpu] if visible else str(gpu)
        self.process: Optional[subprocess.Popen] = None
        self.runs = 0
        self.closed = False

    def run(self, plan: SweepPlan, trial: Trial, folder: str) -> Result:
        """Run a trial; a process that dies leaves a failed result.

        Args:
            plan: The plan.
            trial: The trial.
            folder: Its folder.
        """
        write_json(os.path.join(folder, 'trial.json'), dict(plan=plan, trial=asdict(trial)))
        if self.process is None:
            # A session of its own: Ctrl-C ends the sweep, which then ends this process; the trial stays unfinished, not
            # failed.
            self.process = subprocess.Popen([sys.executable, '-m', 'mmpetl.sweeps.trial'],
                                            stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE,
                                            stderr=subprocess.DEVNULL,
                                            env=self.env,
                                            text=True,
                                            start_new_session=True)
            self.runs = 0
        process = self.process
        answer = self._ask(process, folder)
        result = read_result(folder)
        if self.closed:
            return result or Result(FAILED, error='interrupted')
        if result is None:
            status = process.wait()
            how = f'was killed by signal {-status}' if status < 0 else f'ended with status {status}'
            result = Result(FAILED, error=f'the process {how} without a result; see {os.path.join(folder, "log.txt")}')
            write_result(folder, result)
        self.runs += 1
        if answer != 'done' or result.status == FAILED or self.runs >= self.LIFE:
            self._end()
        return result

    @staticmethod
    def _ask(process: subprocess.Popen, folder: str) -> str:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(folder + '\n')
            process.stdin.flush()
            return process.stdout.readline().strip()
        except OSError:
            return ''

    def close(self) -> None:
        """End the process for good; a trial that it runs keeps no result and is taken up again by the next sweep."""
        self.closed = True
        self._end()

    def _end(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None


def _gpus() -> int:
    import torch
    return torch.cuda.device_count()


def work(plan: SweepPlan, work_dir: str, jobs: Optional[int] = None) -> None:
    """Run everything of a sweep that has no result. Returns when nothing is left, here or with other workers.

    Args:
        plan: The plan.
        work_dir: Folder of the sweep.
        jobs: Runs at a time; None: one per GPU, else one.
    """
    every = units(plan, work_dir)
    if not startable(every, set()):
        return
    count = _gpus()
    jobs = jobs or max(count, 1)
    idle = [Worker(n % count if count > 1 else None) for n in range(jobs)]
    everyone = list(idle)
    running: Running = {}
    pool = ThreadPoolExecutor(jobs)
    try:
        while True:
            busy = {unit.folder(trial) for unit, trial, *_ in running.values()}
            ready = startable(every, busy)
            for unit, trial in ready:
                if not idle:
                    break
                claim = Claim(unit.folder(trial))
                if not claim.acquire():
                    continue
                if unit.result(trial) is not None:  # finished by another worker since we looked
                    claim.release()
                    continue
                worker = idle.pop(0)
                running[pool.submit(worker.run, plan, trial, unit.folder(trial))] = (unit, trial, claim, worker)
            if running:
                _collect(running, idle)
            elif not ready:
                return
            else:
                time.sleep(PATIENCE)
    finally:
        for each in everyone:
            each.close()
        pool.shutdown()
        for *_, claim, _ in running.values():
            claim.release()


def _collect(running: 'Running', idle: List[Worker]) -> None:
    """Wait for the next run to end, report it and set its worker free."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        _, trial, claim, worker = running.pop(future)
        claim.release()
        idle.append(worker)
        print(describe(trial, future.result()), flush=True)


Running = Dict[Future, Tuple[Unit, Trial, Claim, Worker]]
