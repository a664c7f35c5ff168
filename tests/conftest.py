"""What every test shares: a hermetic environment, the shared data, a Hub on loopback, a process without latentlm."""

import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from forked import Forks

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

# Set before torch and huggingface_hub are imported, both read them then; processes that tests start inherit them.
# One thread each: two pytest workers on two cores, and sums in the same order on every machine.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # same results with and without a GPU; set it to lend the tests one
os.environ["MPLBACKEND"] = "agg"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
if (SHARED / "data" / "lm_eval").is_dir():
    os.environ.setdefault("LATENTLM_EVAL_DATA", str(SHARED / "data" / "lm_eval"))
# Caches of the tests' own, one per pytest worker: nothing is read from or left in the user's.
_CACHES = tempfile.mkdtemp(prefix="latentlm-tests-")
atexit.register(shutil.rmtree, _CACHES, ignore_errors=True)
os.environ["HF_HOME"] = f"{_CACHES}/huggingface"
os.environ["LATENTLM_CACHE"] = f"{_CACHES}/latentlm"
os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{_CACHES}/inductor"  # compiled for another CPU, code found there is wrong


class MiniHub(NamedTuple):
    """A running model Hub. `root` holds its repositories as `root/<organisation>/<name>/…`."""

    endpoint: str
    root: Path
    environment: dict[str, str]
    """What a process needs to talk to it. huggingface_hub reads this when imported: start a new process with it."""


# Files whose tests or fixtures take many seconds each. They come first: at the end, no worker waits for another, and
# what a module's tests share is made in one worker, as work is taken over from the end of the list.
LONG = ["two_processes", "upstream", "use_with", "examples", "training_processes", "abstractinator_training"]
LONG += ["toy_architecture", "plain_trainer", "publishing", "experiments", "fsq_stages", "encodzall_training"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {f"test_{name}.py": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector, which every training and every batch of requests calls
    several times, need not look through its millions of objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, whichever tests ran before it in this worker."""
    from transformers import set_seed

    set_seed(0)


def _shared_folder(name: str, variable: str) -> Path:
    folder = Path(os.environ.get(variable) or SHARED / name)
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; set {variable} to where it is")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real text and benchmark files (`$LATENTLM_SHARED_DATA` or ../shared/data); skips where it is absent."""
    return _shared_folder("data", "LATENTLM_SHARED_DATA")


@pytest.fixture(scope="session")
def shared_checks() -> Path:
    """Folder of the acceptance checks (`$LATENTLM_SHARED_CHECKS` or ../shared/checks); skips where it is absent."""
    return _shared_folder("checks", "LATENTLM_SHARED_CHECKS")


@pytest.fixture
def mini_hub(shared_checks: Path, tmp_path: Path) -> Iterator[MiniHub]:
    """An empty model Hub on a free port of loopback, stopped after the test."""
    root = tmp_path / "hub"
    with subprocess.Popen(
        [sys.executable, str(shared_checks / "mini_hub"), str(root)], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline().strip()  # "HF_ENDPOINT=http://127.0.0.1:<port>", once it listens
            assert line.startswith("HF_ENDPOINT="), f"mini_hub did not start: {line!r}"
            endpoint = line.removeprefix("HF_ENDPOINT=")
            environment = {
                "HF_ENDPOINT": endpoint,
                "HF_TOKEN": "hf_test",
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_OFFLINE": "0",
                "HF_HOME": str(tmp_path / "hub_client"),
            }
            yield MiniHub(endpoint, root, environment)
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs code and shell scripts in processes that need not import transformers."""
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def run_without_latentlm(tmp_path: Path) -> Callable[..., str]:
    """[`stranger`] in a folder of the test."""
    return stranger(tmp_path)


@pytest.fixture(scope="module")
def run_without_latentlm_once(tmp_path_factory) -> Callable[..., str]:
    """[`stranger`] for a process that several tests look at."""
    return stranger(tmp_path_factory.mktemp("stranger"))


def stranger(parent: Path) -> Callable[..., str]:
    """Runs Python code in a new process that cannot import latentlm and has an empty Hugging Face cache.

    Called as `run_without_latentlm(code, *arguments, env=None)`; `arguments` are `sys.argv[1:]` there, `env` is added
    to this process's environment. Returns what the code printed; fails with its whole output if it raises.
    """

    def run(code: str, *arguments: str | Path, env: Mapping[str, str] | None = None, timeout: float = 300) -> str:
        folder = Path(tempfile.mkdtemp(prefix="stranger-", dir=parent))
        # An entry of None makes `import latentlm` and `import latentlm.x` raise, however the package is installed.
        blocked = f"import sys\nsys.modules['latentlm'] = None\n{code}"
        done = subprocess.run(
            [sys.executable, "-P", "-c", blocked, *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "HF_HOME": str(folder / "huggingface"), **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
