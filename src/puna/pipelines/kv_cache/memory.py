"""How much memory the cache may take: what the machine or the container has left, less a margin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from puna.errors import InsufficientMemoryError
from puna.nn.kv_cache import KVCacheParams

_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """Memory that this process may use, in bytes.

    Attributes:
        total: The machine's memory, or the container's limit if that is lower.
        available: What of it could be had without pushing anything out but file caches.
        limited_by: `machine`, or the control group file that states the limit.
    """

    total: int
    available: int
    limited_by: str = "machine"

    def less(self, nbytes: int) -> MachineMemory:
        """What is available when so many bytes of it, of mapped files that are needed all the time, are not."""
        return replace(self, available=max(self.available - nbytes, 0))


def machine_memory(root: Path = Path("/")) -> MachineMemory:
    """Reads the machine's memory and the limits of all control groups (v1 and v2) that this process is in.

    Args:
        root: Where `proc` and `sys` are mounted.
    """
    meminfo = _meminfo(root / "proc/meminfo")
    memory = MachineMemory(meminfo["MemTotal"], meminfo.get("MemAvailable", meminfo["MemTotal"]))
    for limit_file, usage_file in _control_groups(root):
        limit = _number(limit_file)
        if limit is None or limit >= _UNLIMITED:
            continue
        used = max((_number(usage_file) or 0) - _reclaimable(limit_file.parent), 0)
        left = max(limit - used, 0)
        if limit < memory.total:
            memory = MachineMemory(limit, min(left, memory.available), str(limit_file))
        elif left < memory.available:
            memory = MachineMemory(memory.total, left, memory.limited_by)
    return memory


def plan_num_blocks(
    params: KVCacheParams,
    memory: MachineMemory,
    *,
    max_seq_len: int,
    max_batch_size: int,
    utilization: float = 0.9,
    may_shrink: bool = True,
) -> int:
    """The number of pages of the pool: `min(fitting, pages that max_batch_size requests of max_seq_len tokens fill)`.

    Call it when weights and activations are in memory already: `memory.available` must not count them as available.

    Args:
        params: Sizes of a page.
        memory: What there is.
        max_seq_len: Longest request, in tokens.
        max_batch_size: Requests at once.
        utilization: Share of the available memory that is used; the rest is the margin.
        may_shrink: Whether a pool that holds less than one request of `max_seq_len` is fine. It is not when the user
            asked for that length.

    Raises:
        InsufficientMemoryError: Not even one page fits, or not one request and `may_shrink` is False.
    """
    budget = int(memory.available * utilization)
    num_blocks = params.num_blocks_within(
        budget - params.bytes_per_block, max_seq_len, max_batch_size
    )  # and a null page
    required = 1 if may_shrink else params.num_blocks_for(max_seq_len)
    if num_blocks < required:
        length = params.page_size if may_shrink else max_seq_len
        raise InsufficientMemoryError(
            f"a KV cache for {length} tokens ({params.bytes_per_token / 1024:.1f} KiB each)",
            (required + 1) * params.bytes_per_block,
            max(budget, 0),
            "ask for a shorter context (--max-length) or a narrower cache (--kv-cache-dtype int8)",
        )
    return num_blocks


def _meminfo(path: Path) -> dict[str, int]:
    entries: dict[str, int] = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        name, _colon, rest = line.partition(":")
        fields = rest.split()
        if fields and fields[0].isdigit():
            entries[name] = int(fields[0]) * (1024 if fields[-1] == "kB" else 1)
    return entries


def _control_groups(root: Path) -> Iterator[tuple[Path, Path]]:
    """(limit file, usage file) of every control group from this process' own up to the root."""
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _hierarchy, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, usage = mount, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, usage = mount / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # Inside a container the path may name a group that only the host sees; its own group is then the mount itself.
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder != base and base not in folder.parents:
                break
            if (folder / limit).is_file():
                yield folder / limit, folder / usage


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable(group: Path) -> int:
    """Bytes of file caches that the group can give up at once."""
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    entries = dict(line.split(None, 1) for line in lines if " " in line)
    return int(entries.get("total_inactive_file", entries.get("inactive_file", "0")))
