"""The curves of a page's records as runs of a local trackio project, to be looked through in its dashboard.

    python eval/experiments/to_trackio.py track                     # then: trackio show --project latentlm-track
    python eval/experiments/to_trackio.py track --pages FOLDER    # and its dashboard as static pages, for any server

A run is named after its record, has its configuration, the curves of its training and at the last step its metrics.
"""

import argparse
import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import trackio
from records import RECORDS, RUN, Record, RecordError, read_page

# Trackio's pages read a data set of the Hub. Where config.json names none they ask for that of this name, which is
# answered from the folder beside them.
HEAD = """<head>
    <script>
      const here = new URL(".", location.href).pathname, load = window.fetch;
      const hub = "https://huggingface.co/datasets/undefined/resolve/main/";
      window.__trackio_base = here.slice(0, -1);
      window.fetch = (url, ...rest) => load(typeof url === "string" ? url.replace(hub, here + "data/") : url, ...rest);
    </script>"""


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
        # Its own machine is not that of the run.
        trackio.init(project, name, config=record.configuration, embed=False, auto_log_cpu=False, auto_log_gpu=False)
        for step, values in by_step(record).items():
            trackio.log(values, step)
        trackio.finish()
    return project


def write_pages(project: str, folder: Path) -> None:
    """The dashboard of a project as static pages with their data, which need neither trackio nor the Hub.

    Raises:
        RecordError: if the folder is there already.
    """
    if folder.exists():
        raise RecordError(f"--pages {folder} is there already: name a new folder")
    package = Path(trackio.__file__).parent
    shutil.copytree(package / "frontend" / "dist", folder)
    shutil.copytree(package / "assets", folder / "static" / "trackio")
    trackio.SQLiteStorage.export_for_static_space(project, folder / "data")
    settings = {"mode": "static", "project": project, "version": trackio.__version__}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    for path in (folder / "index.html", *folder.glob("assets/index-*.js")):  # may lie anywhere on a server
        text = path.read_text(encoding="utf-8").replace('"/static/', '"./static/').replace('="/assets', '="./assets')
        path.write_text(text.replace("<head>", HEAD) if path.suffix == ".html" else text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", help="a folder of eval/records")
    parser.add_argument("--project", help="of trackio (default: latentlm-PAGE)")
    parser.add_argument("--pages", type=Path, help="a new folder for the dashboard as static pages")
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args(arguments)
    try:
        project = export(options.page, options.records, options.project)
        if options.pages:
            write_pages(project, options.pages)
    except RecordError as error:
        sys.exit(f"to_trackio.py: {error}")
    print(f"trackio show --project {project}")


if __name__ == "__main__":
    main()
