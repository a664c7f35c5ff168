"""The curves of a page's records as runs of a local trackio project, to be looked through in its dashboard.

    python eval/experiments/to_trackio.py track         # then: trackio show --project latentlm-track
    trackio sync --project latentlm-track --space-id NAME --sdk static      # the same as static pages on the Hub

A run is named after its record, has its configuration, the curves of its training and at the last step its metrics.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import trackio
from records import RECORDS, RUN, Record, RecordError, read_page


def by_step(record: Record) -> dict[int, dict[str, float]]:
    """What a record knows of each step."""
    steps: dict[int, dict[str, float]] = defaultdict(dict)
    for name, points in record.curve.items():
        for step, value in points:
            steps[int(step)][name] = value
    steps[record.steps or max(steps, default=0)] |= record.metrics
    return dict(sorted(steps.items()))


def export(page: str, records: Path = RECORDS, project: str | None = None) -> str:
    """Write the runs of a page, trials of learning rates among them, and return the project's name.

    Raises:
        RecordError: if the page has no runs, or the project is there already.
    """
    project = project or f"latentlm-{page}"
    runs = [one for one in read_page(page, records) if one.source == RUN]
    if not runs:
        raise RecordError(f"{records / page} holds no run")
    if trackio.SQLiteStorage.get_runs(project):
        raise RecordError(f"the trackio project {project!r} is there already: give another --project, or delete it")
    for record in runs:
        name = record.file_name.removesuffix(".json")
        quiet = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}  # its own machine is not that of the run
        trackio.init(project, name, config=record.configuration, **quiet)
        for step, values in by_step(record).items():
            trackio.log(values, step)
        trackio.finish()
    return project


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", help="a folder of eval/records")
    parser.add_argument("--project", help="of trackio (default: latentlm-PAGE)")
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args(arguments)
    try:
        project = export(options.page, options.records, options.project)
    except RecordError as error:
        sys.exit(f"to_trackio.py: {error}")
    print(f"trackio show --project {project}")


if __name__ == "__main__":
    main()
