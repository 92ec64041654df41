"""Reports of runs that were trained before, and their comparison.

    python -m utils.report RUN                 # writes RUN/report.html anew
    python -m utils.report RUN RUN RUN         # and comparison.html, with their curves over each other

Standard library only.
"""

from utils.cli.arguments import Parser
from utils.cli.errors import run_script
from utils.report.comparison import write_comparison
from utils.report.report import write_report


def parse_args(argv=None):
    parser = Parser("python -m utils.report", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run: its --output_dir")
    parser.add_argument("--output", metavar="FILE", help="the comparison of several runs; none: comparison.html")
    args = parser.parse_args(argv)
    if args.output and len(args.runs) == 1:
        parser.error("--output names the comparison of several runs; the report of one run is RUN/report.html")
    return args


def main(args):
    for folder in args.runs:
        print(write_report(folder))
    if len(args.runs) > 1:
        print(write_comparison(args.runs, args.output or "comparison.html"))


if __name__ == "__main__":
    run_script("python -m utils.report", main, parse_args())
