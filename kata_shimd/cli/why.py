"""``kata-shimd why POD``."""

import argparse
import sys
from typing import Any

from kata_shimd.cli.output import OK, add_output, add_pod, add_run_dir
from kata_shimd.debug import pods, why


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("why", help="what happened to a pod, and most likely why")
    add_pod(parser)
    add_output(parser)
    add_run_dir(parser)


def run(args: argparse.Namespace) -> int:
    report = why.explain(pods.find(args.run_dir, args.pod), args.pod)
    sys.stdout.write(why.as_json(report) if args.output == "json" else why.as_text(report))
    return OK
