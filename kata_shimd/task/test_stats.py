"""The agent's counters land in containerd's fields, in both messages."""

from kata_shimd import wire
from kata_shimd.api import agent, cgroup1, cgroup2
from kata_shimd.task import stats

REPLY = agent.StatsContainerResponse(
    cgroup_stats=agent.CgroupStats(
        cpu_stats=agent.CpuStats(
            cpu_usage=agent.CpuUsage(
                total_usage=9000, percpu_usage=[9000], usage_in_kernelmode=2000, usage_in_usermode=7000
            ),
            throttling_data=agent.ThrottlingData(periods=1, throttled_periods=2, throttled_time=3000),
        ),
        memory_stats=agent.MemoryStats(
            usage=agent.MemoryData(usage=100, max_usage=200, failcnt=3, limit=400),
            swap_usage=agent.MemoryData(usage=5, limit=6),
            stats={"anon": 11, "file": 12, "inactive_file": 13, "pgfault": 14, "unheard_of": 1, "oom_kill": 2},
        ),
        pids_stats=agent.PidsStats(current=4, limit=8),
        blkio_stats=agent.BlkioStats(
            io_service_bytes_recursive=[
                agent.BlkioStatsEntry(major=8, minor=0, op="Read", value=10),
                agent.BlkioStatsEntry(major=8, minor=0, op="Write", value=20),
            ],
            io_serviced_recursive=[agent.BlkioStatsEntry(major=8, minor=0, op="read", value=1)],
        ),
        hugetlb_stats={"2MB": agent.HugetlbStats(usage=1, max_usage=2, failcnt=3)},
    ),
    network_stats=[agent.NetworkStats(name="eth0", rx_bytes=1, rx_packets=2, tx_errors=3, tx_dropped=4)],
)


def test_version_2():
    packed = stats.metrics(REPLY, unified=True)
    assert packed.type_url == "io.containerd.cgroups.v2.Metrics"
    made = wire.unpack(packed, cgroup2.Metrics)
    assert (made.cpu.usage_usec, made.cpu.user_usec, made.cpu.system_usec) == (9, 7, 2)
    assert (made.cpu.nr_periods, made.cpu.nr_throttled, made.cpu.throttled_usec) == (1, 2, 3)
    assert (made.memory.usage, made.memory.usage_limit, made.memory.anon, made.memory.inactive_file) == (
        100,
        400,
        11,
        13,
    )
    assert (made.pids.current, made.pids.limit) == (4, 8)
    (entry,) = made.io.usage
    assert (entry.major, entry.rbytes, entry.wbytes, entry.rios, entry.wios) == (8, 10, 20, 1, 0)
    assert made.hugetlb[0].pagesize == "2MB"
    assert made.memory_events.oom_kill == 2
    (network,) = made.network
    assert (network.name, network.rx_bytes, network.rx_packets, network.tx_errors, network.tx_dropped) == (
        "eth0",
        1,
        2,
        3,
        4,
    )


def test_version_1():
    packed = stats.metrics(REPLY, unified=False)
    assert packed.type_url == "io.containerd.cgroups.v1.Metrics"
    made = wire.unpack(packed, cgroup1.Metrics)
    assert (made.cpu.usage.total, made.cpu.usage.kernel, made.cpu.usage.per_cpu) == (9000, 2000, [9000])
    assert made.cpu.throttling.throttled_time == 3000
    assert (made.memory.rss, made.memory.total_cache, made.memory.total_inactive_file) == (11, 12, 13)
    assert (made.memory.usage.usage, made.memory.usage.max, made.memory.usage.limit) == (100, 200, 400)
    assert (made.pids.current, made.hugetlb[0].failcnt) == (4, 3)
    assert [entry.value for entry in made.blkio.io_service_bytes_recursive] == [10, 20]
    assert made.memory_oom_control.oom_kill == 2
    assert (made.network[0].name, made.network[0].tx_dropped) == ("eth0", 4)


def test_an_agent_with_no_counters_gives_zeros():
    for unified in (True, False):
        assert stats.metrics(agent.StatsContainerResponse(), unified=unified).type_url


def test_no_limit_is_what_each_version_says_for_it():
    memory = agent.MemoryStats(usage=agent.MemoryData(limit=(1 << 64) - 1))
    reply = agent.StatsContainerResponse(cgroup_stats=agent.CgroupStats(memory_stats=memory))
    new = wire.unpack(stats.metrics(reply, unified=True), cgroup2.Metrics)
    old = wire.unpack(stats.metrics(reply, unified=False), cgroup1.Metrics)
    assert (new.memory.usage_limit, new.pids.limit) == ((1 << 64) - 1, (1 << 64) - 1)
    assert (old.memory.usage.limit, old.memory.hierarchical_memory_limit, old.pids.limit) == (
        9223372036854771712,
        9223372036854771712,
        0,
    )


def test_what_a_guest_may_send_any_number_of_is_bounded():
    many = 10 * stats.MAX_ENTRIES
    entries = [agent.BlkioStatsEntry(major=8, minor=n, op="Read" * 100, value=1) for n in range(many)]
    reply = agent.StatsContainerResponse(
        cgroup_stats=agent.CgroupStats(
            cpu_stats=agent.CpuStats(cpu_usage=agent.CpuUsage(percpu_usage=[1] * many)),
            blkio_stats=agent.BlkioStats(io_service_bytes_recursive=entries),
            hugetlb_stats={f"{n}" * 100: agent.HugetlbStats() for n in range(many)},
        ),
        network_stats=[agent.NetworkStats(name="x\n" * 1000)] * many,
    )
    for unified, message in ((True, cgroup2.Metrics), (False, cgroup1.Metrics)):
        packed = stats.metrics(reply, unified=unified)
        made = wire.unpack(packed, message)
        assert len(made.network) == len(made.hugetlb) == stats.MAX_ENTRIES
        assert "\n" not in made.network[0].name and len(made.network[0].name) <= stats.MAX_NAME
        assert len(packed.value) < 256 << 10
