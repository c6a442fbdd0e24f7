# SPDX-License-Identifier: Apache-2.0
"""Several workers on one folder, and the processes that run trials."""

import json
import os
import signal
import threading
import time

from mmpetl.sweeps import claims, workers
from mmpetl.sweeps.trial import Trial, read_result


def test_claims(tmp_path, monkeypatch):
    first, second = claims.Claim(str(tmp_path)), claims.Claim(str(tmp_path))
    assert first.acquire() and not second.acquire()
    first.release()
    assert second.acquire()
    # The holder is gone: its process does not exist.
    (tmp_path / 'claim').write_text(
        json.dumps(dict(host=__import__('socket').gethostname(), pid=2**22 + 1, start='1', token='x')))
    assert first.acquire()
    second.release()  # lost meanwhile: the file of the new holder stays
    assert (tmp_path / 'claim').read_text() == first.token
    # A holder on another machine is believed as long as it shows signs of life.
    (tmp_path / 'claim').write_text(json.dumps(dict(host='elsewhere', pid=1, start='1', token='x')))
    assert not second.acquire()
    old = time.time() - claims.DEAD - 1
    os.utime(tmp_path / 'claim', (old, old))
    assert second.acquire()
    # Of several that take over at once, exactly one gets it.
    os.utime(tmp_path / 'claim', (old, old))
    rivals = [claims.Claim(str(tmp_path)) for _ in range(8)]
    got = []
    threads = [threading.Thread(target=lambda c=c: got.append(c.acquire())) for c in rivals]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert sum(got) == 1


def test_signs_of_life_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, 'BEAT', 0.05)
    with claims.Claim(str(tmp_path)) as claim:
        assert claim.acquire()
        old = time.time() - 1000
        os.utime(claim.path, (old, old))
        time.sleep(0.5)
        assert time.time() - os.path.getmtime(claim.path) < 10
    assert not os.path.exists(claim.path)


def test_a_worker_whose_process_is_killed_leaves_a_failed_result(tmp_path):
    (tmp_path / 'config.py').write_text('import time\ntime.sleep(100)\n')
    plan = dict(config=str(tmp_path / 'config.py'), suite='vtab')
    worker = workers.Worker()
    folder = str(tmp_path / 't')

    def kill():
        while worker.process is None or not os.path.exists(os.path.join(folder, 'log.txt')):
            time.sleep(0.1)
        os.kill(worker.process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = worker.run(plan, Trial('kitti', 'final'), folder)
    killer.join()
    assert result.status == 'failed' and 'was killed by signal 9' in result.error and read_result(folder) == result
    # The next trial gets a new process; closing the worker while it runs leaves no result.
    other = str(tmp_path / 'u')
    closer = threading.Timer(2., worker.close)
    closer.start()
    worker.run(plan, Trial('kitti', 'final'), other)
    closer.join()
    assert read_result(other) is None and worker.process is None
