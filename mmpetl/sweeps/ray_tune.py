"""The trials of a sweep on Ray Tune: one machine with several GPUs, or a Ray cluster whose machines see the same
folders.

Tune decides where and when a trial runs; what to try next comes from the result files, as without Ray. So a sweep may
be begun with Ray and finished without it, and the other way round.
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from .claims import Claim
from .plan import Plan, startable, units
from .trial import FAILED, Result, Trial, describe, read_result, run_trial, write_result


def run_on_ray(config: Dict[str, Any]) -> Dict[str, Any]:
    """What a Ray worker does: run one trial and report its score."""
    os.chdir(config['cwd'])
    result = run_trial(config['plan'], Trial(**config['trial']), config['folder'])
    return dict(score=result.score if result.score is not None else float('nan'), status=result.status)


def _searcher(plan: Plan, work_dir: str) -> Any:
    """A Tune searcher that proposes what the folder lacks."""
    from ray.tune.search import Searcher


    class FolderSearcher(Searcher):
        """Suggests the trials of a sweep that have no result."""

        def __init__(self) -> None:
            super().__init__(metric='score', mode='max')
            self.units = units(plan, work_dir)
            self.running: Dict[str, Tuple[Trial, str, Claim]] = {}

        def suggest(self, trial_id: str) -> Any:
            """Config of the next trial, None while others must end first, or FINISHED."""
            ready = startable(self.units, {folder for _, folder, _ in self.running.values()})
            for unit, trial in ready:
                folder = unit.folder(trial)
                claim = Claim(folder)
                if claim.acquire():
                    self.running[trial_id] = (trial, folder, claim)
                    return dict(plan=plan, trial=asdict(trial), folder=folder, cwd=os.getcwd())
            return None if ready or self.running else Searcher.FINISHED

        def on_trial_complete(self, trial_id: str, result: Optional[dict] = None, error: bool = False) -> None:
            """Free the claim; a worker that died leaves a failed result."""
            if trial_id not in self.running:
                return
            trial, folder, claim = self.running.pop(trial_id)
            found = read_result(folder)
            if found is None:
                found = Result(
                    FAILED,
                    error='the Ray worker died without a result; see the files in ' + os.path.join(work_dir, 'ray'))
                write_result(folder, found)
            claim.release()
            print(describe(trial, found), flush=True)

        def save(self, checkpoint_path: str) -> None:
            """Nothing to save: the state is in the sweep's folder."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing to restore."""

    return FolderSearcher()


def work_on_ray(plan: Plan, work_dir: str, address: str = 'local', gpus: float = 1.) -> None:
    """Run everything of a sweep that has no result, on Ray Tune.

    Args:
        plan: The plan.
        work_dir: Folder of the sweep, seen by all machines of the cluster.
        address: 'local' starts Ray on this machine; otherwise the address of a cluster ('auto' for the one that this
            machine belongs to).
        gpus: GPUs of a run, may be a fraction; 0 where the machines have none.

    Raises:
        ValueError: If Ray Tune is not installed.
    """
    try:
        import ray
        from ray import tune
    except ImportError:
        raise ValueError(
            "--ray needs Ray Tune: pip install 'ray[tune]', or leave --ray away and the trials run one by one"
        ) from None
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))
    os.environ.setdefault('RAY_CHDIR_TO_TRIAL_DIR', '0')
    started = not ray.is_initialized()
    if started:
        ray.init(address=None if address == 'local' else address, include_dashboard=False, log_to_driver=False,
                 runtime_env=dict(env_vars=dict(PYTHONPATH=path)))
    gpus = min(gpus, ray.cluster_resources().get('GPU', 0))
    resources: Dict[str, float] = dict(cpu=1, gpu=gpus) if gpus else dict(cpu=1)
    try:
        tune.Tuner(
            tune.with_resources(run_on_ray, resources),
            tune_config=tune.TuneConfig(search_alg=_searcher(plan, work_dir), num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=os.path.abspath(os.path.join(work_dir, 'ray')), verbose=0)).fit()
    finally:
        if started:
            ray.shutdown()
