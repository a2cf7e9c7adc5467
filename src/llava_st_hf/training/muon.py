# SPDX-License-Identifier: Apache-2.0
"""Muon for weight matrices beside AdamW for all else, as one optimizer."""

import torch
from torch.optim.adamw import adamw


# Coefficients of the quintic Newton–Schulz iteration of Muon (Jordan et al., 2024), and how often it is done.
_QUINTIC, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5
# Whether this machine's processors multiply matrices of bfloat16 (AMX).
TILES = bool(torch.cpu.get_capabilities().get("amx_bf16", False))


class MuonAdamW(torch.optim.Optimizer):
    """
    Updates groups with `"muon": True` by Muon, the others by AdamW.

    Muon's update of a matrix is the nearest one with orthogonal rows or columns to its momentum: directions that gradients seldom point
    to count as much as others. Here it has the size that an AdamW update mostly has, so that both take the same learning rate
    (Liu et al., 2025).

    Args:
        params: groups of parameters; those of a group with `"muon": True` are matrices, whole on every process.
        lr, betas, eps, weight_decay: as of [`~torch.optim.AdamW`]; `lr` and `weight_decay` for both.
        momentum: of Muon.

    Raises:
        ValueError: for a parameter of a Muon group that is no matrix.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, momentum=0.95):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum": momentum, "muon": False})
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["muon"] and parameter.ndim != 2:
                    raise ValueError(f"Muon updates matrices; a parameter has the shape {tuple(parameter.shape)}.")

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["muon"]:
                self._muon(group, parameters)
            elif parameters:
                self._adamw(group, parameters)
        return loss

    def _muon(self, group: dict, parameters: list[torch.Tensor]) -> None:
        same_shape: dict[tuple, list[torch.Tensor]] = {}
        for parameter in parameters:
            same_shape.setdefault((parameter.shape, parameter.device), []).append(parameter)
        for ((height, width), _), matrices in same_shape.items():
            updates = []
            for matrix in matrices:
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                momentum = state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                updates.append(matrix.grad.lerp(momentum, group["momentum"]))
            directions = orthogonal(torch.stack(updates))  # (matrices, height, width)
            rate = group["lr"] * 0.2 * max(height, width) ** 0.5  # entries of AdamW's updates are mostly of size 0.2
            for matrix, direction in zip(matrices, directions, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-rate)

    def _adamw(self, group: dict, parameters: list[torch.Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """
    Matrices of the same singular vectors, with singular values near 1 (between 0.7 and 1.2 but for tiny ones).

    Args:
        matrices: (matrices, height, width).

    Returns:
        (matrices, height, width), of the same type.
    """
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    if wide.is_cuda or TILES:
        wide = wide.bfloat16()  # precise enough, and what the iteration was made for; slow on processors without such units
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = wide @ wide.mT  # (matrices, side, side) of the shorter side
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide if matrices.shape[-2] <= matrices.shape[-1] else wide.mT).to(matrices.dtype)
