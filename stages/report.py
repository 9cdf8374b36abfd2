"""Stage `report`: draw the pictures and pages of one stage from the tables and arrays that it wrote.

Nothing is computed here that another stage needs: an edit of a picture trains nothing.
"""

from __future__ import annotations

import argparse

from stages.dataset.base import REPORTS
from stages.dataset.files import new_folder
from stages.reporting.outputs import Outputs
from stages.reporting.pictures import draw_all
from stages.workflow.params import Params
from stages.workflow.runs import StageRun
from stages.workflow.stage import stage

PAGES = REPORTS / "pages"
STAGES = ("ingest", "detect_noise", "curate", "augment", "synthesize", "evaluate")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", choices=STAGES, help="whose tables are drawn, into reports/pages/STAGE")


def _name(options: argparse.Namespace) -> str:
    """Return the stage's name in dvc.yaml."""
    return "page" if _is_page(options) else f"report@{options.stage}"


def _is_page(options: argparse.Namespace) -> bool:
    """Whether this is the last stage, whose run in MLflow has the pictures of all of them."""
    return options.stage == "evaluate"


@stage("report", _arguments, named=_name, tracked=_is_page)
def main(params: Params, run: StageRun, options: argparse.Namespace) -> None:
    """Draw the pictures of a stage; for ingest the data card, for evaluate the page of the whole pipeline."""
    outputs = Outputs()
    with new_folder(PAGES / options.stage) as folder:
        draw_all(options.stage, outputs, folder)
        if options.stage == "ingest":
            from stages.reporting.card import read_card, write_card

            write_card(folder, read_card(outputs))
        if _is_page(options):
            from stages.reporting.page import render_page
            from stages.reporting.reports import read_results

            page = render_page(read_results(REPORTS, folder))
            (folder / "index.html").write_text(page, "utf-8")
    if _is_page(options):
        run.log_artifacts(PAGES)
        run.adopt_stages()
        print(f"report: open {PAGES}/evaluate/index.html")


if __name__ == "__main__":
    main()
