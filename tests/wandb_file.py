"""Reads what `wandb` writes offline: protobufs in a LevelDB log (7 bytes of magic; records in pieces; 32 KiB blocks).

A piece is crc32 (4 bytes), length (2), kind (1: whole, 2: first, 3: middle, 4: last) and its bytes; fewer than 7 bytes
left in a block are padding. Used as a script: prints the run as one JSON object.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

BLOCK = 32768


def records(content: bytes) -> Iterator[bytes]:
    at, held = 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        held += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield held
            held = b""


def read(path: Path) -> dict:
    """The run's id, project, name, config, history (one dict a step) and exit code."""
    from wandb.proto import wandb_internal_pb2

    found: dict = {"history": []}
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        match record.WhichOneof("record_type"):
            case "run":
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                found |= {"id": record.run.run_id, "project": record.run.project, "name": record.run.display_name}
                found["config"] = {name: value for name, value in config.items() if not name.startswith("_")}
            case "history":
                items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                found["history"].append({name: v for name, v in items.items() if name in ("_step", "loss", "l0")})
            case "exit":
                found["exit"] = record.exit.exit_code
    return found


if __name__ == "__main__":
    json.dump([read(path) for path in sorted(Path(sys.argv[1]).rglob("*.wandb"))], sys.stdout)
