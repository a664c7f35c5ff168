"""Everything that needs a GPU, in stages: correct, fast in training, fast in decoding, and what is learned in minutes.

    python benchmarks/gpu.py [--only correctness training decoding streams runs] [--toy] [--text FOLDER]

Each stage is a process with a time limit and prints a row as soon as it is measured, the most valuable ones first. What
was measured stands in `runs/gpu/` at once. A stage that ends well replaces its record in `eval/records/gpu/`; one that
was cut short or failed does so only where no row is lost. The whole takes at most twelve minutes on one H100. `--toy`
runs every stage at toy size, on a CPU too.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.utils import send_to_device
from subjects import SUBJECTS, Batch, Subject
from timing import machine, median_seconds
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

REPOSITORY = Path(__file__).parents[1]
EXPERIMENTS = REPOSITORY / "eval" / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
from records import (  # noqa: E402
    MEASURED,
    RECORDS,
    Record,
    RecordError,
    circumstances,
    read_record,
    record_name,
    write_record,
)

from latentlm.models.modeling_parallel_encoder_decoder import ParallelEncoderDecoderModel  # noqa: E402

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, as the makers state them
PAGE = "gpu"
PARTIAL = REPOSITORY / "runs"  # records of stages that have not ended
SECONDS = {"correctness": 110, "training": 150, "decoding": 70, "streams": 40, "runs": 330}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Row = tuple[str, float, str]  # name, value, and what it is or has to be
WRONG, FAILED = "WRONG", "failed"  # in the last part of a row: the stage then ends with an error


def guarded(what: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows of one measurement; an error becomes a row, so that the others are still measured."""
    try:
        yield from rows
    except Exception as error:
        kind = "not run" if isinstance(error, ImportError) else FAILED
        yield what, float("nan"), f"{kind}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


# ---- Correctness: equal to eager attention in float32 on the CPU ----

FLOAT32, BFLOAT16 = (1e-4, 1e-3), (3e-2, 1e-1)  # relative errors of logits and of gradients, in the 2-norm


def outputs(model: PreTrainedModel, batch: Batch, autocast: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the tokens, and all gradients of the loss as one vector, float32 on the CPU."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
        result = model(**batch)
    result.loss.backward()
    # A compiled graph leaves zeros where eager mode leaves no gradient.
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    vector = torch.cat([whole(gradient).detach().float().cpu().flatten() for gradient in gradients])
    return whole(result.logits).detach().float().cpu(), vector


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def relative_error(values: torch.Tensor, reference: torch.Tensor) -> float:
    return float((values - reference).norm() / reference.norm())


def median_error(values: torch.Tensor, reference: torch.Tensor) -> float:
    """Over tokens: another code changes the tokens after it, and says nothing about the others."""
    return float(((values - reference).norm(dim=-1) / reference.norm(dim=-1)).median())


def sharded(model: PreTrainedModel) -> PreTrainedModel:
    """The model under FSDP2, on one device."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized():
        store = dist.HashStore()
        dist.init_process_group("nccl" if DEVICE.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
    mesh = dist.init_device_mesh(DEVICE.type, (1,))
    return fully_shard(model, mesh=mesh)


def correctness(toy: bool) -> Iterator[Row]:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    width, depth, length, count = (32, 1, 32, 2) if toy else (256, 2, 256, 4)
    backend = "aot_eager" if toy else "inductor"
    variants: dict[str, tuple[str, Callable[[PreTrainedModel], PreTrainedModel], bool]] = {
        "sdpa": ("sdpa", lambda model: model, False),
        "sdpa, bf16": ("sdpa", lambda model: model, True),
        "flash, bf16": ("flash_attention_2", lambda model: model, True),
        "FSDP2 on one device": ("sdpa", sharded, False),
        "compiled": ("sdpa", lambda model: torch.compile(model, backend=backend), False),
        "flex": ("flex_attention", lambda model: model, False),
    }
    references: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for variant, (attention, change, autocast) in variants.items():
        for name, subject in SUBJECTS.items():
            if name == "gpt2" or (attention == "flex_attention" and DEVICE.type == "cpu"):
                continue  # flex attention has no backward on a CPU
            reference = subject.build(width, depth, length, attn_implementation="eager").eval()
            batch = subject.batch(reference, count, length)
            if name not in references:
                references[name] = outputs(reference, batch)
            what = f"{name}, {variant}"

            def build(subject: Subject = subject, attention: str = attention) -> PreTrainedModel:
                return subject.build(width, depth, length, attn_implementation=attention).eval().to(DEVICE)

            measure = median_error if subject.chooses and autocast else relative_error
            yield from guarded(what, compare(what, build, change, batch, autocast, references[name], measure))


def compare(
    what: str,
    build: Callable[[], PreTrainedModel],
    change: Callable[[PreTrainedModel], PreTrainedModel],
    batch: Batch,
    autocast: bool,
    reference: tuple[torch.Tensor, torch.Tensor],
    measure: Callable[[torch.Tensor, torch.Tensor], float],
) -> Iterator[Row]:
    """Errors of the logits, by `measure`, and of the gradients of one variant."""
    values = outputs(change(build()), send_to_device(batch, DEVICE), autocast)
    limits = BFLOAT16 if autocast else FLOAT32
    measures = (measure, relative_error)
    for part, value, target, limit, error_of in zip(
        ("logits", "gradients"), values, reference, limits, measures, strict=True
    ):
        error = error_of(value, target)
        verdict = "ok" if error <= limit else WRONG
        yield f"{what}, relative error of {part}", error, f"≤ {limit:g}: {verdict}"


# ---- Training: a step in bfloat16, with its share of the device's peak ----


def training(toy: bool) -> Iterator[Row]:
    sizes = [("toy", 32, 60_000)] if toy else [("16 M", 384, 16_000_000), ("124 M", 1024, 124_000_000)]
    count, length = (2, 64) if toy else (32, 1024)
    peak = next((flops for name, flops in PEAK_FLOPS.items() if DEVICE.type == "cuda" and name in device_name()), None)
    if peak is None:
        peak = product_flops(256 if toy else 4096)
    yield "peak, TFLOP/s", peak / 1e12, "as the maker states it, or of a large matrix product in bfloat16"
    for size, width, parameters in reversed(sizes):
        for compiled in (False, True):
            for name, subject in SUBJECTS.items():
                what = f"{name} {size}, {'compiled' if compiled else 'eager'}"
                model = partial(subject.build, width, subject.depth_of(width, parameters, length), length)
                rows = training_step(what, subject, model, count, length, peak, compiled, toy)
                yield from guarded(what, rows)


def training_step(
    what: str,
    subject: Subject,
    build: Callable[[], PreTrainedModel],
    count: int,
    length: int,
    peak: float,
    compiled: bool,
    toy: bool,
) -> Iterator[Row]:
    model = build().to(DEVICE).train()
    batch = send_to_device(subject.batch(model, count, length), DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    runs = torch.compile(model, backend="aot_eager" if toy else "inductor") if compiled else model

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = runs(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = median_seconds({"step": step}, 1 if toy else 5, 1 if toy else 2)["step"]
    with FlopCounterMode(display=False) as counter, torch.autocast(DEVICE.type, torch.bfloat16), torch.no_grad():
        model(**batch)
    real = int(batch["labels"].ne(-100).sum())
    yield f"{what}, kB/s", real / 1e3 / seconds, f"B {count}, T {length}, bf16, AdamW"
    yield f"{what}, MFU", 3 * counter.get_total_flops() / seconds / peak, "matrix products of forward and backward"
    if DEVICE.type == "cuda":
        yield f"{what}, GB", torch.cuda.max_memory_allocated() / 1e9, "peak memory"
        del model, runs, optimizer
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def device_name() -> str:
    return torch.cuda.get_device_name()


def product_flops(size: int) -> float:
    one = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    return 2 * size**3 / median_seconds({"product": lambda: one @ one}, 3)["product"]


# ---- Decoding ----


def decoding(toy: bool) -> Iterator[Row]:
    for static in (False, True):
        for count in (1, 2 if toy else 32):
            for name, subject in SUBJECTS.items():
                if not static or (subject.static and subject.generates):
                    what = f"{name}, {'static cache, compiled' if static else 'eager'}, batch {count}"
                    yield from guarded(what, generation(what, subject, count, static, toy))


def generation(what: str, subject: Subject, count: int, static: bool, toy: bool) -> Iterator[Row]:
    width, parameters = (32, 60_000) if toy else (384, 16_000_000)
    prompt, new = (16, 8) if toy else (128, 256)
    length = prompt + new
    model = subject.build(width, subject.depth_of(width, parameters, length), length).to(DEVICE).eval()
    ids = subject.batch(model, count, prompt)["input_ids"].to(DEVICE)
    limits: dict[str, Any] = {"do_sample": False, "attention_mask": torch.ones_like(ids), "max_new_tokens": prompt}
    if subject.generates:
        limits |= {"min_new_tokens": new, "max_new_tokens": new, "pad_token_id": 0}
    if static:
        limits |= {"cache_implementation": "static", "disable_compile": toy}
    seconds = median_seconds({"generate": lambda: model.generate(ids, **limits)}, 1 if toy else 3)["generate"]
    written = count * (new if subject.generates else prompt)
    yield f"{what}, bytes/s", written / seconds, f"{parameters:,} parameters, {new} after {prompt}"


# ---- Two streams: does the parallel model gain from running them at once? ----


class TwoStreams(ParallelEncoderDecoderModel):
    """The parallel model with its decoder stream on a CUDA stream of its own: a decoder layer runs beside the encoder
    layers that come after the one it reads."""

    def run_stacks(self, embeddings, positions, shared_attention, memory_rotary, **shared):
        main, side = torch.cuda.current_stream(), self.second_stream
        side.wait_stream(main)
        encoder_states = embeddings
        with torch.cuda.stream(side):
            hidden_states = self.cross_bridge(embeddings, positions)
        for encoder_layer, decoder_layer in zip(self.encoder_layers, self.decoder_layers, strict=True):
            encoder_states, _ = encoder_layer(encoder_states, None, shared_attention, **shared)
            ready = main.record_event()
            with torch.cuda.stream(side):
                side.wait_event(ready)
                hidden_states, _ = decoder_layer(
                    hidden_states, encoder_states, shared_attention, memory_rotary=memory_rotary, **shared
                )
        main.wait_stream(side)
        return encoder_states, hidden_states, []

    @cached_property
    def second_stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()


def streams(toy: bool) -> Iterator[Row]:
    """A forward and a training step of one row as CUDA graphs, so that no launch is waited for."""
    width, parameters, length = (32, 60_000, 32) if toy else (384, 16_000_000, 256)
    for parts in (1, 2, 4):
        sizes: dict[str, tuple[Subject, int]] = {}
        for name in ("decoder_only", "ar_encoder_decoder", "parallel_encoder_decoder"):
            subject = SUBJECTS[name]
            sizes[name] = (subject, max(1, subject.depth_of(width, parameters, length) * parts // 4))
        for count in (1, 16):
            yield from guarded(f"{parts}/4 of the depth, batch {count}", graphed(sizes, width, length, count))


def graphed(sizes: dict[str, tuple[Subject, int]], width: int, length: int, count: int) -> Iterator[Row]:
    """Times of the models of one size, all measured in turns."""
    forwards: dict[str, Callable[[], object]] = {}
    steps: dict[str, Callable[[], object]] = {}
    for name, (subject, depth) in sizes.items():
        what = f"{name}, depth {depth}, batch {count}"
        model = subject.build(width, depth, length).to(DEVICE).eval()
        batch: Batch = dict(send_to_device(subject.batch(model, count, length), DEVICE))
        forwards[what], steps[what] = graphs(model, batch)
        if name == "parallel_encoder_decoder" and DEVICE.type == "cuda":
            what = f"{name} on two streams, depth {depth}, batch {count}"
            one, _ = outputs(model, batch)
            model.base_model.__class__ = TwoStreams
            two, _ = outputs(model, batch)
            model.zero_grad(set_to_none=True)
            error = relative_error(two, one)
            yield f"{what}, change of the logits", error, f"≤ {FLOAT32[0]:g}: {'ok' if error <= FLOAT32[0] else WRONG}"
            forwards[what], steps[what] = graphs(model, batch)
    for kind, runs in (("forward", forwards), ("forward and backward", steps)):
        for what, seconds in median_seconds(runs, 20, 3).items():
            yield f"{what}, {kind}, ms", 1e3 * seconds, f"T {length}, bf16, one CUDA graph"


def graphs(model: PreTrainedModel, batch: Batch) -> tuple[Callable[[], object], Callable[[], object]]:
    """A forward, and a forward with its backward; on a GPU recorded once and played back."""

    def forward() -> None:
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False):
            model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False):
            loss = model(**batch, use_cache=False).loss
        loss.backward()

    if DEVICE.type != "cuda":
        return forward, step
    played: list[Callable[[], object]] = []
    for work in (forward, step):
        warming = torch.cuda.Stream()
        warming.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warming):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(warming)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        # A graph reads weights and inputs, and adds to gradients, where they were: none of them may be freed.
        kept = (model, batch, [parameter.grad for parameter in model.parameters()])
        played.append(lambda graph=graph, kept=kept: (kept, graph.replay()))
    return played[0], played[1]


# ---- Runs that need a GPU: many small ones share it ----

# Page, entry and random seed, what matters most first. Eighteen at once, two of them large, keep an H100 busy and leave
# 130 ms for a step of the small ones; without the large ones thirteen take 40 ms.
RUNS = (
    *(("ar-ablation-original", name, 0) for name in ("plain", "best", "decoder-only")),
    ("many-passes", "no-ngrams", 0),
    *(
        ("ar-ablation", f"{name}-10", seed)
        for seed in range(3)
        for name in ("subtraction", "both", "mse", "decoder-only")
    ),
    *(("pyramid", f"{name}-8192", 0) for name in ("shared-trunk", "decoder-only", "blt")),
    *(("ar-ablation", f"{name}-10", 0) for name in ("rotary", "rotary-subtraction", "decoder-only-subtraction")),
    ("many-passes", "ngrams", 0),
)
AT_ONCE = 10


def runs(toy: bool, text: Path | None = None) -> Iterator[Row]:
    """The runs that have no record yet; each leaves one where all runs leave theirs."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, ThreadPoolExecutor(1 if toy else AT_ONCE) as pool:
        options = ["--records", folder, "--runs", f"{folder}/runs"] if toy else []
        options += ["--text", str(text)] if text else []

        def run(job: tuple[str, str, int]) -> Row:
            page, entry, seed = job
            command = [
                sys.executable,
                str(EXPERIMENTS / "run.py"),
                page,
                "--only",
                entry,
                "--seeds",
                str(seed),
                *options,
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                return " ".join(map(str, job)), float("nan"), f"{FAILED}: {done.stderr.strip()[-300:]}"
            record = read_record((Path(folder) if toy else RECORDS) / page / record_name(entry, seed))
            return " ".join(map(str, job)), record.metrics["eval_bits_per_byte"], "bits per byte"

        for future in as_completed([pool.submit(run, job) for job in ((("smoke", "ngram", 0),) if toy else RUNS)]):
            yield future.result()


# ---- Stages ----

STAGES: dict[str, Callable[..., Iterator[Row]]] = {
    "correctness": correctness,
    "training": training,
    "decoding": decoding,
    "streams": streams,
    "runs": runs,
}


@contextmanager
def shared_gpu() -> Iterator[dict[str, str]]:
    """An environment whose processes run their kernels at once, where CUDA's MPS is there; its daemon ends with it."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None:
        yield dict(os.environ)
        return
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        subprocess.run([control, "-d"], env=environment, check=True)
        try:
            yield environment
        finally:
            subprocess.run([control], env=environment, input="quit\n", text=True, timeout=60, check=False)


def run_process(command: list[str], seconds: float, environment: dict[str, str]) -> int | None:
    """Run a command with all that it starts, in a session of its own; its exit status, None if it took longer."""
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also of Ctrl-C, which does not reach another session
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def keep(record: Record, replace: bool) -> None:
    """Write the record of a stage among those of the repository, or say why that of an earlier one stays."""
    try:
        write_record(record, RECORDS, replace)
    except RecordError as error:
        print(f"{record.entry}: {error} The rows above are in {PARTIAL / record.page / record.file_name}.", flush=True)


def run_stage(name: str, toy: bool, **options: Any) -> None:
    """Measure, print and write one row after the other.

    Raises:
        SystemExit: at the end, if a row is wrong or failed.
    """
    measured: dict[str, float] = {}
    notes: dict[str, str] = {}
    where = circumstances()
    for what, value, note in STAGES[name](toy, **options):
        print(f"| {what} | {value:.4g} | {note} |", flush=True)
        notes[what] = note
        if value == value:
            measured[what] = value
        if toy or not measured:
            continue
        record = Record(
            page=PAGE,
            entry=name,
            label=name,
            source=MEASURED,
            configuration={"notes": notes},
            metrics=measured,
            **where,
        )
        write_record(record, PARTIAL, replace=True)
    bad = [what for what, note in notes.items() if WRONG in note or FAILED in note]
    if bad:
        sys.exit(f"{name}: {', '.join(bad)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--toy", action="store_true", help="every stage at toy size, no records")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)  # what the process of a stage runs
    parser.add_argument("--text", type=Path, help="folder of the corpora, which runs read")
    options = parser.parse_args()
    if options.stage:
        run_stage(options.stage, options.toy, **({"text": options.text} if options.stage == "runs" else {}))
        return
    print(machine(), flush=True)
    failed = []
    for name in options.only:
        print(f"\n| {name} | measured | |\n|---|--:|---|", flush=True)
        started = time.monotonic()
        command = [sys.executable, __file__, "--stage", name, *(["--toy"] if options.toy else [])]
        command += ["--text", str(options.text)] if options.text else []
        rows = PARTIAL / PAGE / record_name(name, 0)
        if not options.toy:
            rows.unlink(missing_ok=True)
        with shared_gpu() if name == "runs" and not options.toy else nullcontext(dict(os.environ)) as environment:
            status = run_process(command, SECONDS[name], environment)
        if status is None:
            print(f"{name}: cut short after {SECONDS[name]} s; the rows above stand", flush=True)
        elif status:
            failed.append(name)
        if rows.exists() and not options.toy:
            keep(read_record(rows), replace=status == 0)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
