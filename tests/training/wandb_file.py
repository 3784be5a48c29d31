"""Reads what the real W&B library wrote offline: a LevelDB log of its own protocol's records."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb

BLOCK, HEADER, FILE_HEADER = 32_768, 7, 7


def records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), FILE_HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block is filled up where no header fits
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        whole += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or its last piece
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


class OfflineRun:
    """One start of a run, read back from its folder `wandb/offline-run-...`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (path,) = folder.glob("*.wandb")
        self.records = list(records(path))
        self.run = self.all("run")[0]
        self.config = {item.key: json.loads(item.value_json) for item in self.run.config.update}

    def all(self, kind: str) -> list[Any]:
        """All records of a kind."""
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @property
    def history(self) -> list[dict[str, Any]]:
        """Lines of metrics; a nested value under its dotted key."""
        return [{".".join(item.nested_key): json.loads(item.value_json) for item in line.item} for line in self.all("history")]

    @property
    def summary(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for record in self.all("summary"):
            values |= {".".join(item.nested_key): json.loads(item.value_json) for item in record.update}
        return values

    @property
    def exit_code(self) -> int:
        (exited,) = self.all("exit")
        return exited.exit_code


def offline_runs(run_dir: Path) -> list[OfflineRun]:
    """Every start of a run, in order of time. W&B's own process writes them, and is ended first."""
    wandb.teardown()
    folders = sorted((run_dir / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_ctime)
    return [OfflineRun(folder) for folder in folders]
