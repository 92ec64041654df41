"""python -m utils.report RUN [RUN …]"""

from utils.cli.errors import run_script
from utils.report.report import main, parse_args

if __name__ == "__main__":
    run_script("python -m utils.report", main, parse_args())
