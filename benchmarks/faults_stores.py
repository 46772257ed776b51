"""Damage to files that were whole: shards of a store, and the checkpoint and weights of a training.

What is caught when, counted per damage (`where`):

    opening     sizes are compared, so that a missing, cut or longer shard is refused; a checkpoint is read whole
    reading     a header that does not fit its file is refused; `open(..., checked=True)` compares each tensor with its
                sha256 before its first row is handed out
    verifying   `verify()` compares everything, and names every damaged shard

Then the same extraction again, which may compute nothing but the batches of damaged shards.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.faults_calls import Point
from benchmarks.faults_jobs import SITES
from benchmarks.faults_rounds import Course, Row
from interp.errors import InputError
from interp.loop import checkpoints
from interp.shards import damage
from interp.store import ActivationStore

Random = np.random.Generator


def truncated(path: Path, random: Random) -> None:
    """Cut at a random length."""
    content = path.read_bytes()
    path.write_bytes(content[: random.integers(0, len(content))])


def flipped(path: Path, random: Random) -> None:
    """One bit anywhere."""
    content = bytearray(path.read_bytes())
    content[random.integers(len(content))] ^= 1 << random.integers(8)
    path.write_bytes(content)


def flipped_header(path: Path, random: Random) -> None:
    """One bit of the header."""
    content = bytearray(path.read_bytes())
    content[random.integers(8 + int.from_bytes(content[:8], "little"))] ^= 1 << random.integers(8)
    path.write_bytes(content)


def missing(path: Path, random: Random) -> None:
    """Gone."""
    path.unlink()


def swapped(path: Path, random: Random) -> None:
    """Exchanged with another file of the folder, of the same size if there is one."""
    others = sorted(other for other in path.parent.glob(f"*{path.suffix}") if other != path)
    others = [other for other in others if other.stat().st_size == path.stat().st_size] or others
    other = others[random.integers(len(others))]
    aside = path.with_suffix(".aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


DAMAGES: dict[str, Callable[[Path, Random], None]] = {
    "truncated": truncated,
    "one bit flipped": flipped,
    "one bit of the header flipped": flipped_header,
    "missing": missing,
    "two swapped": swapped,
}


def damaged_shards(course: Course, rounds: int) -> list[Row]:
    """Each kind of damage to shards of a finished store, `rounds` times."""
    course.fresh()
    assert course.run().how == "done"
    whole = ActivationStore.open(course.folder)
    names = [entry["name"] for entry in whole.manifest["shards"]]
    held = {str(site): whole.rows(site, 0, len(whole)).clone() for site in SITES}
    held |= {name: value.clone() for name, value in whole.keys(0, len(whole))._asdict().items() if name != "acts"}
    rows = []
    for kind, act in DAMAGES.items():
        row = Row(f"shard: {kind}", "extract")
        for _ in range(rounds):
            act(course.folder / names[course.random.integers(len(names))], course.random)
            bad = {entry["name"] for entry in whole.manifest["shards"] if damage(course.folder, entry)}
            row.where[noticed(course.folder, held)] += 1
            wrong = verified(course.folder, bad) + course.again(sealed_but(course, names, bad))
            row.count(1, wrong)
            row.reruns += 1
        rows.append(row)
    return rows


def noticed(folder: Path, held: dict[str, torch.Tensor]) -> str:
    """When the damage is noticed by one who only opens and reads, in checked and in plain reading."""
    try:
        ActivationStore.open(folder)
    except InputError:
        return "opening"
    plain, checked = (read(folder, held, checked=checked) for checked in (False, True))
    assert checked != "wrong rows", "a checked store handed out wrong rows"
    return {"refused": "reading", "wrong rows": "checked reading"}.get(plain, "verifying")


def read(folder: Path, held: dict[str, torch.Tensor], *, checked: bool) -> str:
    """What comes of reading all rows: `refused`, `wrong rows` or `right rows`."""
    try:
        store = ActivationStore.open(folder, checked=checked)
        found = {str(site): store.rows(site, 0, len(store)) for site in SITES}
        found |= {name: value for name, value in store.keys(0, len(store))._asdict().items() if name != "acts"}
    except InputError:
        return "refused"
    same = all(torch.equal(found[name].float(), value.float()) for name, value in held.items())
    return "right rows" if same else "wrong rows"


def verified(folder: Path, bad: set[str]) -> list[str]:
    """What is wrong with what opening or `verify` says of the shards `bad`."""
    try:
        ActivationStore.open(folder).verify()
    except InputError as error:
        unnamed = [name for name in bad if name not in str(error)]
        return [f"{unnamed} not named in: {error}"] if unnamed else []
    return [f"not noticed: {bad}"] if bad else []


def sealed_but(course: Course, names: list[str], bad: set[str]) -> set[str]:
    """The batches that need not be computed again."""
    from interp.plan import Plan

    plan = Plan.load(course.folder / "plan.json")
    good = [number for number, name in enumerate(names) if name not in bad]
    return {f"{course.folder.name} batch {batch}" for number in good for batch in plan.batches_of(number)}


def damaged_checkpoints(course: Course, rounds: int) -> list[Row]:
    """The newest checkpoint of a killed training: refused by name; without it, the one before leads to the same end."""
    rows = []
    for kind in ("truncated", "one bit flipped"):
        row = Row(f"checkpoint: {kind}", "train")
        while row.reruns < rounds:
            course.fresh()
            course.run(Point("kill after", at=int(course.random.integers(course.calls // 4, course.calls))))
            found = checkpoints(course.folder / "training")
            if not found or (course.folder / "sae_weights.safetensors").exists():
                continue  # of a finished run, whose checkpoints only wait to be deleted, nothing is read
            DAMAGES[kind](found[-1], course.random)
            ended = course.run()
            named = ended.how == "refused" and str(found[-1]) in ended.text and "delete it" in ended.text
            found[-1].unlink()
            row.where["opening" if named else "not at all"] += 1
            row.count(1, ([] if named else [f"{kind}: {ended}"]) + course.again(course.job.sealed(course.folder)))
            row.reruns += 1
        rows.append(row)
    return rows


def damaged_weights(course: Course, rounds: int) -> list[Row]:
    """The weights of a finished SAE: loading refuses them."""
    from saes.sae import SAE

    course.fresh()
    assert course.run().how == "done"
    weights, row = course.folder / "sae_weights.safetensors", Row("SAE weights: one bit flipped", "train")
    kept = course.home / "kept"
    shutil.copy(weights, kept)
    for _ in range(rounds):
        flipped(weights, course.random)
        try:
            SAE.load(course.folder)
            wrong = ["damaged weights were loaded"]
        except InputError as error:
            wrong = [] if str(weights) in str(error) else [f"unclear: {error}"]
        row.where["opening"] += not wrong
        row.count(1, wrong)
        shutil.copy(kept, weights)
    return [row]
