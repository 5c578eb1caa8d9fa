"""What is warmed is not made again."""

from kata_shimd import warmth, wire
from kata_shimd.api import agent, events, task


def test_no_table_is_made_after_the_warming():
    warmth.use_once()
    made = wire._table.cache_info().misses
    for cls in (task.CreateTaskRequest, task.StatsResponse, agent.CreateContainerRequest, events.TaskExit):
        wire.decode(cls, wire.encode(cls()))
    assert wire._table.cache_info().misses == made


def test_everything_inside_a_message_is_prepared():
    wire._table.cache_clear()
    wire.prepare(agent.CreateContainerRequest)
    prepared = wire._table.cache_info().currsize
    wire.prepare(agent.CreateContainerRequest)
    assert prepared > 20 and wire._table.cache_info().currsize == prepared
