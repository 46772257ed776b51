"""A few rounds of every fault, and of planted mistakes that they have to find: `python faults_child.py FOLDER`."""

import fcntl
import json
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from benchmarks.faults_calls import Point, run_preloaded  # noqa: E402


def planted(home: Path) -> dict[str, list[str]]:
    """What is found wrong after mistakes were made on purpose; each is undone afterwards."""
    import interp.ledger
    import interp.tensorfile
    from benchmarks.faults_jobs import Jobs
    from benchmarks.faults_rounds import Course
    from benchmarks.faults_writers import Contest

    jobs = Jobs(home / "jobs")
    train, extract = (Course(jobs, jobs.named(name), home, 0) for name in ("train", "extract"))
    found: dict[str, list[str]] = {}

    def at_every_write(course: Course) -> list[str]:
        wrong: list[str] = []
        for number in range(1, course.calls):
            course.fresh()
            if wrong or course.run(Point("kill midway", number, kinds=("write",))).how != "killed":
                return wrong
            wrong += course.again(course.job.sealed(course.folder))
        return wrong

    kept = interp.tensorfile.partial_name
    interp.tensorfile.partial_name = lambda path: path
    found["written under the final name"] = at_every_write(train)
    interp.tensorfile.partial_name = kept

    finished = interp.ledger.Progress.finished
    interp.ledger.Progress.finished = lambda self, shards: {}
    found["finished shards are forgotten"] = at_every_write(extract)
    interp.ledger.Progress.finished = finished

    flock = fcntl.flock
    fcntl.flock = lambda handle, how: None
    found["no lock"] = Contest(extract).race(2).lost
    fcntl.flock = flock
    return found


def after_a_kill_in_a_bar(home: Path) -> str:
    """How a run ends after another process was killed while it held the lock of its progress bar."""
    from benchmarks.faults_jobs import Jobs
    from benchmarks.faults_rounds import Course, attempt
    from interp.progress import bar

    def drawing() -> None:
        with bar(1, "drawing") as shown:
            shown.get_lock().acquire()
            os.kill(os.getpid(), signal.SIGKILL)

    jobs = Jobs(home / "jobs")
    train = Course(jobs, jobs.named("train"), home, 0)
    assert attempt(drawing, home).how == "killed"
    train.fresh()
    return train.run().how


def main(home: Path) -> None:
    run_preloaded(__file__)
    from benchmarks.faults import KINDS, rows_of

    rows = [vars(row) for row in rows_of(list(KINDS), ["extract", "train"], 2, 1, home / "faults")]
    found = {"rows": rows, "planted": planted(home / "planted"), "bar": after_a_kill_in_a_bar(home / "bar")}
    (home / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
