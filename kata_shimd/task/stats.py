"""The guest's counters as containerd's metrics, cgroup v1's or v2's message by the **host's** mode (`containerd.md` §2.5).

The agent's numbers are the guest's: not believed beyond their type, and of what it may send any number of, only so many are handed
on, with names cut to a length. Fields the agent has no number for stay 0.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

from kata_shimd import wire
from kata_shimd.api import agent, cgroup1, cgroup2, wkt

_UNIFIED: Final = Path("/sys/fs/cgroup/cgroup.controllers")
_MAX: Final = (1 << 64) - 1
#: Version 1's way to say that memory is not limited, in bytes.
_MAX_1: Final = (1 << 63) - 4096
#: Entries of one list (devices, interfaces, sizes of huge pages, processors), and characters of one name.
MAX_ENTRIES: Final = 256
MAX_NAME: Final = 64
#: ``memory.events``; our agent puts them among the counters of ``memory.stat``, Kata's does not tell them.
_EVENTS: Final = ("low", "high", "max", "oom", "oom_kill", "oom_group_kill")


def host_is_unified() -> bool:
    """Whether the host has cgroup v2 alone, as containerd's collector decides."""
    return _UNIFIED.exists()


def metrics(reply: agent.StatsContainerResponse, *, unified: bool | None = None) -> wkt.Any:
    """The reply of StatsContainer as the Any that Stats answers."""
    if unified is None:
        unified = host_is_unified()
    counters = reply.cgroup_stats or agent.CgroupStats()
    make = _version_2 if unified else _version_1
    return wire.pack_any(make(counters, list(reply.network_stats[:MAX_ENTRIES])))


def _name(text: str) -> str:
    return "".join(ch for ch in text[:MAX_NAME] if ch.isprintable())


#: Fields of an interface's counters, the same in all three messages.
_NETWORK: Final = tuple(f"{way}_{what}" for way in ("rx", "tx") for what in ("bytes", "packets", "errors", "dropped"))


def _network(item: agent.NetworkStats) -> dict[str, Any]:
    return {"name": _name(item.name), **{field: getattr(item, field) for field in _NETWORK}}


def _pages(counters: agent.CgroupStats) -> Iterable[tuple[str, agent.HugetlbStats]]:
    return ((_name(size), item) for size, item in islice(counters.hugetlb_stats.items(), MAX_ENTRIES))


def _version_1(counters: agent.CgroupStats, network: list[agent.NetworkStats]) -> cgroup1.Metrics:
    cpu, memory, pids = _parts(counters)
    usage = cpu.cpu_usage or agent.CpuUsage()
    throttling = cpu.throttling_data or agent.ThrottlingData()
    return cgroup1.Metrics(
        pids=cgroup1.PidsStat(current=pids.current, limit=pids.limit),
        cpu=cgroup1.CpuStat(
            usage=cgroup1.CpuUsage(
                total=usage.total_usage,
                kernel=usage.usage_in_kernelmode,
                user=usage.usage_in_usermode,
                per_cpu=list(usage.percpu_usage[:MAX_ENTRIES]),
            ),
            throttling=cgroup1.Throttle(
                periods=throttling.periods,
                throttled_periods=throttling.throttled_periods,
                throttled_time=throttling.throttled_time,
            ),
        ),
        memory=_memory_1(memory),
        memory_oom_control=cgroup1.MemoryOomControl(oom_kill=memory.stats.get("oom_kill", 0)),
        blkio=_blkio_1(counters.blkio_stats or agent.BlkioStats()),
        hugetlb=[
            cgroup1.HugetlbStat(usage=item.usage, max=item.max_usage, failcnt=item.failcnt, pagesize=size)
            for size, item in _pages(counters)
        ],
        network=[cgroup1.NetworkStat(**_network(item)) for item in network],
    )


def _parts(counters: agent.CgroupStats) -> tuple[agent.CpuStats, agent.MemoryStats, agent.PidsStats]:
    return (
        counters.cpu_stats or agent.CpuStats(),
        counters.memory_stats or agent.MemoryStats(),
        counters.pids_stats or agent.PidsStats(),
    )


#: cgroup v2's names in memory.stat, and the field of the v1 message each is (also as total_*).
_STAT_1: Final[Mapping[str, str]] = {
    "file": "cache",
    "anon": "rss",
    "anon_thp": "rss_huge",
    "file_mapped": "mapped_file",
    "file_dirty": "dirty",
    "file_writeback": "writeback",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "inactive_anon": "inactive_anon",
    "active_anon": "active_anon",
    "inactive_file": "inactive_file",
    "active_file": "active_file",
    "unevictable": "unevictable",
}


def _memory_1(memory: agent.MemoryStats) -> cgroup1.MemoryStat:
    fields: dict[str, Any] = {}
    for name, value in memory.stats.items():
        if (field := _STAT_1.get(name, name)) in _MEMORY_1_FIELDS:
            fields[field] = value
            fields[f"total_{field}"] = value
    usage = memory.usage or agent.MemoryData()
    return cgroup1.MemoryStat(
        **fields,
        usage=_entry_1(usage),
        swap=_entry_1(memory.swap_usage or agent.MemoryData()),
        kernel=_entry_1(memory.kernel_usage or agent.MemoryData()),
        hierarchical_memory_limit=min(usage.limit, _MAX_1),
    )


_MEMORY_1_FIELDS: Final = frozenset(_STAT_1.values())


def _entry_1(data: agent.MemoryData) -> cgroup1.MemoryEntry:
    return cgroup1.MemoryEntry(
        limit=min(data.limit, _MAX_1), usage=data.usage, max=data.max_usage, failcnt=data.failcnt
    )


def _blkio_1(blkio: agent.BlkioStats) -> cgroup1.BlkIoStat:
    return cgroup1.BlkIoStat(
        io_service_bytes_recursive=_entries_1(blkio.io_service_bytes_recursive),
        io_serviced_recursive=_entries_1(blkio.io_serviced_recursive),
        io_queued_recursive=_entries_1(blkio.io_queued_recursive),
        io_service_time_recursive=_entries_1(blkio.io_service_time_recursive),
        io_wait_time_recursive=_entries_1(blkio.io_wait_time_recursive),
        io_merged_recursive=_entries_1(blkio.io_merged_recursive),
        io_time_recursive=_entries_1(blkio.io_time_recursive),
        sectors_recursive=_entries_1(blkio.sectors_recursive),
    )


def _entries_1(entries: list[agent.BlkioStatsEntry]) -> list[cgroup1.BlkIoEntry]:
    return [
        cgroup1.BlkIoEntry(op=_name(e.op), major=e.major, minor=e.minor, value=e.value) for e in entries[:MAX_ENTRIES]
    ]


def _version_2(counters: agent.CgroupStats, network: list[agent.NetworkStats]) -> cgroup2.Metrics:
    cpu, memory, pids = _parts(counters)
    usage = cpu.cpu_usage or agent.CpuUsage()
    throttling = cpu.throttling_data or agent.ThrottlingData()
    return cgroup2.Metrics(
        pids=cgroup2.PidsStat(current=pids.current, limit=pids.limit or _MAX),
        cpu=cgroup2.CpuStat(
            usage_usec=usage.total_usage // 1000,
            user_usec=usage.usage_in_usermode // 1000,
            system_usec=usage.usage_in_kernelmode // 1000,
            nr_periods=throttling.periods,
            nr_throttled=throttling.throttled_periods,
            throttled_usec=throttling.throttled_time // 1000,
        ),
        memory=_memory_2(memory),
        memory_events=cgroup2.MemoryEvents(**{name: memory.stats.get(name, 0) for name in _EVENTS}),
        io=cgroup2.IoStat(usage=_io_2(counters.blkio_stats or agent.BlkioStats())),
        hugetlb=[
            cgroup2.HugeTlbStat(current=item.usage, max=item.max_usage, pagesize=size, failcnt=item.failcnt)
            for size, item in _pages(counters)
        ],
        network=[cgroup2.NetworkStat(**_network(item)) for item in network],
    )


def _memory_2(memory: agent.MemoryStats) -> cgroup2.MemoryStat:
    known = cgroup2.MemoryStat.__dataclass_fields__
    fields: dict[str, Any] = {name: value for name, value in memory.stats.items() if name in known}
    usage, swap = memory.usage or agent.MemoryData(), memory.swap_usage or agent.MemoryData()
    fields |= {"usage": usage.usage, "usage_limit": usage.limit or _MAX, "max_usage": usage.max_usage}
    fields |= {"swap_usage": swap.usage, "swap_limit": swap.limit, "swap_max_usage": swap.max_usage}
    return cgroup2.MemoryStat(**fields)


#: What each operation counts in the v2 entry: bytes from one list, requests from the other.
_OPERATIONS: Final = {"read": ("rbytes", "rios"), "write": ("wbytes", "wios")}


def _io_2(blkio: agent.BlkioStats) -> list[cgroup2.IoEntry]:
    devices: dict[tuple[int, int], dict[str, int]] = {}
    for index, entries in enumerate((blkio.io_service_bytes_recursive, blkio.io_serviced_recursive)):
        for entry in entries[:MAX_ENTRIES]:
            if (names := _OPERATIONS.get(entry.op.lower())) is not None:
                devices.setdefault((entry.major, entry.minor), {})[names[index]] = entry.value
    return [cgroup2.IoEntry(major=major, minor=minor, **counts) for (major, minor), counts in devices.items()]
