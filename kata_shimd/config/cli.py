"""``kata-shimd config show | check``: what is in force and why, and what is wrong with a file.

Owns the verbs' arguments, output and exit codes: 0 all is well, 1 something is wrong, 2 wrong usage. Answers go to stdout,
talk to stderr.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from kata_shimd.config.host import Finding, KvmObstacle, Verdict, check_host
from kata_shimd.config.load import Examined, examine, is_error, load
from kata_shimd.config.show import SCHEMA_VERSION, as_json, as_toml
from kata_shimd.errors import ShimError

OK: Final = 0
WRONG: Final = 1


def add_parser(subparsers: Any) -> None:
    """Adds the verb ``config`` to ``argparse``'s subparsers; ``run`` carries it out."""
    config = subparsers.add_parser("config", help="show and check the configuration")
    config.set_defaults(run=run)
    verbs = config.add_subparsers(dest="config_verb", required=True, metavar="VERB")
    _add_show(verbs)
    _add_check(verbs)


def _add_show(verbs: Any) -> None:
    show = verbs.add_parser("show", help="print the configuration a pod would get")
    show.add_argument("file", nargs="?", type=Path, metavar="FILE", help="instead of the first file where Kata looks")
    show.add_argument("--origin", action="store_true", help="say where each value came from")
    show.add_argument("-o", "--output", choices=("toml", "json"), default="toml", help="form (%(default)s)")
    _add_annotations(show)


def _add_check(verbs: Any) -> None:
    check = verbs.add_parser("check", help="report everything that is wrong with a configuration")
    check.add_argument("file", nargs="?", type=Path, metavar="FILE", help="instead of the first file where Kata looks")
    check.add_argument("--host", action="store_true", help="also whether this host has what it names")
    check.add_argument("-o", "--output", choices=("text", "json"), default="text", help="form (%(default)s)")
    _add_annotations(check)


def _add_annotations(parser: Any) -> None:
    parser.add_argument(
        "--annotation",
        action="append",
        default=[],
        type=_annotation,
        metavar="NAME=VALUE",
        help="as if the pod had this annotation; may be repeated",
    )


def _annotation(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def run(args: argparse.Namespace, env_path: Path | None = None, kvm_obstacle: KvmObstacle | None = None) -> int:
    """Exit code. ``env_path`` is KATA_CONF_FILE, which only the caller may read; ``kvm_obstacle`` asks about KVM."""
    if args.config_verb == "show":
        return _show(args, env_path)
    return _check(args, env_path, kvm_obstacle)


def _show(args: argparse.Namespace, env_path: Path | None) -> int:
    try:
        loaded = load(_absolute(args.file), b"", env_path, dict(args.annotation))
    except ShimError as error:
        print(f"kata-shimd: {error}", file=sys.stderr)
        return WRONG
    for warning in loaded.warnings:
        print(f"kata-shimd: {warning}", file=sys.stderr)
    form = as_json if args.output == "json" else as_toml
    sys.stdout.write(form(loaded, origin=args.origin))
    return OK


def _check(args: argparse.Namespace, env_path: Path | None, kvm_obstacle: KvmObstacle | None) -> int:
    found = examine(_absolute(args.file), b"", env_path, dict(args.annotation))
    host = check_host(found.config, found.files, kvm_obstacle) if args.host and found.config else ()
    report = _report_json if args.output == "json" else _report_text
    sys.stdout.write(report(found, host))
    return WRONG if is_wrong(found, host) else OK


def is_wrong(found: Examined, host: Sequence[Finding]) -> bool:
    """Whether ``check`` fails: an error, a name nobody knows, or something this host lacks."""
    return any(is_error(problem, strict=True) for problem in found.problems) or any(
        finding.verdict is Verdict.FAIL for finding in host
    )


def _report_text(found: Examined, host: Sequence[Finding]) -> str:
    lines = [f"read {path}" for path in found.files]
    if not lines and not found.problems:
        lines = ["no configuration file: built-in defaults"]
    for problem in found.problems:
        lines.append(f"{'error' if is_error(problem, strict=True) else 'warning'}: {problem}")
    for finding in host:
        lines.append(f"{finding.verdict}: {finding.name}: {finding.why}" + (f"; {finding.fix}" if finding.fix else ""))
    lines.append("wrong" if is_wrong(found, host) else "ok")
    return "\n".join(lines) + "\n"


def _report_json(found: Examined, host: Sequence[Finding]) -> str:
    problems = [
        {
            "severity": "error" if is_error(problem, strict=True) else "warning",
            "key": problem.name,
            "origin": str(problem.origin),
            "what": problem.what,
            "hint": problem.hint,
        }
        for problem in found.problems
    ]
    findings = [
        {"name": finding.name, "verdict": str(finding.verdict), "why": finding.why, "fix": finding.fix}
        for finding in host
    ]
    answer = {
        "schema_version": SCHEMA_VERSION,
        "ok": not is_wrong(found, host),
        "files": [str(path) for path in found.files],
        "problems": problems,
        "host": findings,
    }
    return json.dumps(answer, indent=2, ensure_ascii=False) + "\n"


def _absolute(path: Path | None) -> Path | None:
    """People type relative paths; containerd must not send any."""
    return None if path is None else path.absolute()
