"""``kata-shimd why``: one pod's story and the verdict on it, from its journal alone, whether it lives or not."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from kata_shimd import journal
from kata_shimd.debug import timeline
from kata_shimd.debug.escape import one_line
from kata_shimd.debug.pods import Phase, Pod
from kata_shimd.debug.story import Entry, Story, tell
from kata_shimd.debug.verdict import Verdict, judge, judge_container

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Report:
    """A pod, what happened to it, and what that means for it, or for the one ``container`` that was asked for."""

    pod: Pod
    story: Story
    verdict: Verdict
    container: str = ""


def explain(pod: Pod, name: str = "") -> Report:
    """Read the pod's journal and judge it, or the container that ``name`` means.

    :raises HostFailed: the journal cannot be read
    """
    story = tell(journal.read(pod.journal), live=pod.phase not in (Phase.ENDED, Phase.CRASHED))
    if container := pod.container(name) if name else "":
        return Report(pod, story, judge_container(story, container), container)
    return Report(pod, story, judge(story))


def as_text(report: Report) -> str:
    return "\n".join(_text(report)) + "\n"


def _text(report: Report) -> Iterator[str]:
    pod = report.pod
    yield f"pod {one_line(pod.sandbox_id or '?')} in {one_line(pod.namespace or '?')} ({pod.name}), {pod.phase}"
    if report.story.entries:
        yield f"began {rfc3339(report.story.entries[0].at_ns)}"
    yield ""
    yield from timeline.lines(report.story)
    yield ""
    yield one_line(report.verdict.sentence)


def as_json(report: Report) -> str:
    """Escaped to ASCII: what a guest said cannot drive a terminal this way either."""
    pod = report.pod
    answer = {
        "schema_version": SCHEMA_VERSION,
        "pod": {
            "hash": pod.name,
            "sandbox_id": pod.sandbox_id,
            "namespace": pod.namespace,
            "phase": str(pod.phase),
            "containers": list(pod.containers),
        },
        "container": report.container,
        "verdict": {
            "rule": report.verdict.rule,
            "sentence": report.verdict.sentence,
            "failed": report.verdict.failed,
        },
        "events": [_event(entry) for entry in report.story.entries],
    }
    return json.dumps(answer, indent=2) + "\n"


def _event(entry: Entry) -> dict[str, Any]:
    return {
        "time": rfc3339(entry.at_ns),
        "after_s": round(entry.after, 6),
        "event": entry.event,
        "fields": dict(entry.fields),
    }


def rfc3339(at_ns: int) -> str:
    """UTC with nanoseconds, as containerd writes times."""
    seconds, nanoseconds = divmod(at_ns, 1_000_000_000)
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return str(at_ns)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"
