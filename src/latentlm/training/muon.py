"""The optimizer Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) for the matrices of the layers, with
AdamW for all other parameters."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""The coefficients of the quintic iteration, from the same page. After few iterations, singular values are between 0.7
and 1.2."""
ITERATIONS = 5
EPS = 1e-7
ADAMW_RMS = 0.2
"""The typical root mean square of AdamW's updates. Muon's updates are scaled to it, so that one learning rate suits
matrices of all shapes (Moonlight, arXiv:2502.16982, section 2.2)."""


class Muon(torch.optim.Optimizer):
    """The optimizer Muon for groups of matrices, and AdamW for all other groups of parameters. A schedule scales the
    learning rates of both.

    The update of a matrix `(A, B)` is approximately lr * 0.2 * sqrt(max(A, B)) * U V^T, where U S V^T is the singular
    value decomposition of its momentum (Nesterov's). Matrices of equal shape are orthogonalised together, in bfloat16
    if the device has fast products of that type. If parameters are sharded (FSDP2), each process gathers whole
    matrices, one after the other.

    Args:
        groups: dictionaries with `params`, `muon` (true for matrices that Muon trains), and optionally `lr` and
            `weight_decay`. A group of matrices may have `parts`, the numbers of rows of the linear maps that each of
            its matrices consists of, which are orthogonalised separately.
        lr: learning rate.
        momentum: decay of Muon's momentum.
        betas, eps: parameters of AdamW.
        weight_decay: decoupled weight decay of both, which is multiplied by the learning rate.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        # `fused` determines how torch loads AdamW's step counts.
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, {**defaults, "parts": (), "fused": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if not group["muon"]:
                self._step_adamw(group)
        self._step_muon([group for group in self.param_groups if group["muon"]])
        return loss

    def _step_adamw(self, group: dict[str, Any]) -> None:
        params = [param for param in group["params"] if param.grad is not None]
        for param in params:
            if not self.state[param]:
                self.state[param] = {
                    "step": torch.zeros((), dtype=torch.float32, device=param.device),
                    "exp_avg": torch.zeros_like(param),
                    "exp_avg_sq": torch.zeros_like(param),
                }
        states = [self.state[param] for param in params]
        adamw(
            params,
            [param.grad for param in params],
            *([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")),
            max_exp_avg_sqs=[],
            state_steps=[state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _step_muon(self, groups: list[dict[str, Any]]) -> None:
        matrices = defaultdict(list)  # pairs of matrices and directions, by shape, device and step size
        sharded: list[tuple[torch.Tensor, torch.Tensor]] = []  # parameters and their updates
        for group in groups:
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            grads = [param.grad for param in params]
            for param in params:
                if not self.state[param]:
                    self.state[param] = {"momentum": torch.zeros_like(param)}
            momenta = [self.state[param]["momentum"] for param in params]
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])  # pyright: ignore[reportPrivateImportUsage]
            directions = torch._foreach_lerp(grads, momenta, group["momentum"])  # Nesterov  # pyright: ignore[reportPrivateImportUsage]
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]
            for param, direction in zip(params, directions, strict=True):
                changed = param
                if isinstance(direction, DTensor):
                    direction = direction.full_tensor()
                    changed = torch.zeros_like(direction)
                    sharded.append((param, changed))
                parts = list(group["parts"]) or [len(changed)]
                for matrix, along in zip(changed.split(parts), direction.split(parts), strict=True):
                    if matrix.shape[0] > matrix.shape[1]:
                        matrix, along = matrix.mT, along.mT
                    size = -group["lr"] * ADAMW_RMS * math.sqrt(matrix.shape[1])
                    matrices[matrix.shape, matrix.device, size].append((matrix, along))
        for (_, device, size), pairs in matrices.items():
            stack = torch.stack([along for _, along in pairs]).to(iteration_dtype(device))
            steps = orthogonalise(stack).to(pairs[0][0].dtype)
            torch._foreach_add_([matrix for matrix, _ in pairs], list(steps.unbind()), alpha=size)  # pyright: ignore[reportPrivateImportUsage]
        for param, change in sharded:
            assert isinstance(param, DTensor)
            # Every process has computed the same update, so it is not communicated.
            param.add_(distribute_tensor(change, param.device_mesh, param.placements, src_data_rank=None))


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Return matrices `(N, A, B)`, A <= B, with the same singular vectors and singular values near 1, by the
    Newton–Schulz iteration X <- (a + b X X^T + c (X X^T)^2) X of Muon's page."""
    a, b, c = COEFFICIENTS
    matrices = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    gram = matrices @ matrices.mT
    if matrices.dtype != torch.bfloat16 and 2 * matrices.shape[1] <= matrices.shape[2]:
        # All factors are polynomials of the first X X^T, so all products but the last are (A, A). This is less work,
        # but bfloat16 has too little precision for it.
        product = gram
        for step in range(ITERATIONS):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=-2, dim2=-1).add_(a)
            product = factor @ product if step else factor
            if step + 1 < ITERATIONS:
                gram = factor @ gram @ factor
        return product @ matrices
    for step in range(ITERATIONS):
        if step:
            gram = matrices @ matrices.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        matrices = torch.baddbmm(matrices, polynomial, matrices, beta=a)
    return matrices


def iteration_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which matrices are orthogonalised. It is bfloat16, or float32 on a CPU without instructions
    for products of bfloat16, which are ten times slower there."""
    if device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16
    return torch.float32


def hidden_matrices(model: nn.Module) -> Iterator[tuple[nn.Parameter, tuple[int, ...]]]:
    """Yield the parameters that Muon trains, each with its `parts`. These are the weights of all `nn.Linear`, except
    vectors, weights that are shared with an embedding, and layers that compute logits (the model's output embeddings,
    and modules with a true attribute `is_output`).

    A linear layer that computes several linear maps in one product has an attribute `parts` with the number of rows of
    each map.
    """
    get_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    outputs = [module for module in model.modules() if module is get_head() or getattr(module, "is_output", False)]
    left = {id(part) for module in outputs for part in module.modules()}
    shared = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding) or id(module) in left
        for parameter in module.parameters(recurse=False)
    }
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module.weight) not in shared:
            weight: Any = module.weight
            parts: tuple[int, ...] = tuple(getattr(module, "parts", ()))
            if weight.requires_grad and weight.ndim == 2 and min(weight.shape) > 1:
                shared.add(id(weight))  # so that it is yielded once if several layers share it
                yield weight, parts


def make_muon(model: nn.Module, decayed: list[str], args: Any) -> Muon:
    """Return the optimizer of a model.

    Args:
        model: the model to train.
        decayed: names of the parameters with weight decay, among those that AdamW trains.
        args: the training arguments.

    Raises:
        ValueError: if the model has no matrix for Muon.
    """
    by_parts: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
    for parameter, parts in hidden_matrices(model):
        by_parts[parts].append(parameter)
    if not by_parts:
        raise ValueError(
            f"optim is 'muon', but {type(model).__name__} has no matrix for it: no nn.Linear that is trained and is "
            "not an output layer. Use 'adamw_torch_fused'."
        )
    matrices = {id(parameter) for parameters in by_parts.values() for parameter in parameters}
    rest = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in matrices]
    groups: list[dict[str, Any]] = [  # AdamW's are first, because the first group's learning rate is logged
        {"params": [p for n, p in rest if n in decayed], "weight_decay": args.weight_decay, "muon": False},
        {"params": [p for n, p in rest if n not in decayed], "weight_decay": 0.0, "muon": False},
    ]
    for parts, parameters in by_parts.items():
        shared = {"weight_decay": args.weight_decay, "lr": args.muon_learning_rate, "muon": True}
        groups.append({"params": parameters, "parts": parts, **shared})
    return Muon(
        groups,
        lr=args.learning_rate,
        momentum=args.muon_momentum,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )
