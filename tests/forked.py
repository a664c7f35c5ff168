"""Python code and the commands of shell scripts, each run in a process forked from one that has imported transformers.

Those imports take seconds; a fork takes none. Everything else is as in a process of its own: nothing of a run is seen
by the next, and latentlm is not imported before.
"""

import gc
import json
import os
import runpy
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

# In place of `python`, `latentlm` and `lm_eval`: notes the environment and the arguments.
NOTE = '#!/bin/sh\n{ env -0; printf "\\0"; printf "%s\\0" "${0##*/}" "$@"; } > "$NOTES/$(ls "$NOTES" | wc -l)"\n'


class Forks:
    """The process; ends when this is closed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        self.process.communicate()

    def run(
        self, cwd: Path, code: str = "", arguments: list[str] | None = None, env: Mapping[str, str] | None = None
    ) -> str:
        """What `code`, or `python -m` with `arguments`, prints in the folder `cwd`; fails with it unless it ends well.
        `env` is added to this process's environment."""
        assert self.process.stdin is not None and self.process.stdout is not None
        job = {"cwd": str(cwd), "code": code, "arguments": arguments or [], "env": {**os.environ, **(env or {})}}
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.process.stdin.flush()
        status, printed = json.loads(self.process.stdout.readline())
        assert status == 0, f"exit status {status}\n{code}{arguments}\n{printed}"
        return printed

    def run_shell(self, cwd: Path, *command: str | Path, env: Mapping[str, str] | None = None) -> str:
        """What the Python commands of a shell script print, run as it calls them."""
        calls = commands_of(cwd, *command, env=env)
        return "".join(self.run(cwd, arguments=arguments, env=variables) for arguments, variables in calls)


def commands_of(
    cwd: Path, *command: str | Path, env: Mapping[str, str] | None = None
) -> list[tuple[list[str], dict[str, str]]]:
    """The Python commands of a shell script, which must not depend on what they do: for each what follows `python -m`,
    and its environment. The script runs with notes in place of them."""
    with tempfile.TemporaryDirectory() as folder:
        notes, programs = Path(folder, "notes"), Path(folder, "bin")
        notes.mkdir()
        programs.mkdir()
        for name in ("python", "latentlm", "lm_eval"):
            (programs / name).write_text(NOTE)
            (programs / name).chmod(stat.S_IRWXU)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env={**os.environ, **(env or {}), "PATH": path, "NOTES": str(notes)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        calls = []
        for number in range(len(list(notes.iterdir()))):
            environment, _, words = (notes / str(number)).read_text(encoding="utf-8").partition("\0\0")
            name, *arguments = words.split("\0")[:-1]
            if name == "python":
                assert arguments.pop(0) == "-m"
            else:
                arguments.insert(0, name)
            calls.append((arguments, dict(variable.split("=", 1) for variable in environment.split("\0"))))
        assert calls
        return calls


def main() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, pipeline  # noqa: F401 - what takes seconds

    gc.freeze()  # what is imported stays: children need not look through it, nor copy its memory
    for line in sys.stdin:
        job = json.loads(line)
        with tempfile.TemporaryFile() as output:
            if (child := os.fork()) == 0:
                for descriptor in (1, 2):
                    os.dup2(output.fileno(), descriptor)
                os.environ.clear()
                os.environ.update(job["env"])
                os.chdir(job["cwd"])
                sys.path[0] = job["cwd"]
                if job["arguments"]:
                    sys.argv = job["arguments"]
                    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
                else:
                    exec(compile(job["code"], "<code>", "exec"), {"__name__": "__main__"})
                return
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            output.seek(0)
            print(json.dumps([status, output.read().decode(errors="replace")]), flush=True)


if __name__ == "__main__":
    main()
