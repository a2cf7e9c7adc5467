# SPDX-License-Identifier: Apache-2.0
"""Muon for weight matrices and AdamW for all other parameters, as one optimizer."""

import torch


class MuonAdamW(torch.optim.Optimizer):
    """
    Updates groups with `"muon": True` by [`~torch.optim.Muon`], the others by [`~torch.optim.AdamW`].

    One optimizer object, because the Trainer, learning rate schedulers and checkpoints take one. Muon's update is scaled to the root
    mean square that an AdamW update typically has (`match_rms_adamw`; Liu et al., 2025), so that both use the same learning rate.

    Args:
        params (`list[dict]`): parameter groups. Parameters of a group with `"muon": True` are matrices, complete on every process.
        lr, weight_decay: of both, unless a group has its own.
        betas, eps: of AdamW.
        momentum: of Muon.

    Raises:
        ValueError: if a parameter of a Muon group is not a matrix.
    """

    def __init__(self, params: list[dict], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, momentum=0.95):
        groups: dict[bool, list[dict]] = {True: [], False: []}
        for group in params:
            groups[group.get("muon", False)].append({**group, "muon": group.get("muon", False)})
        self._parts: list[tuple[bool, torch.optim.Optimizer]] = []
        if groups[True]:
            muon = torch.optim.Muon(groups[True], lr, weight_decay, momentum, adjust_lr_fn="match_rms_adamw")
            self._parts.append((True, muon))
        if groups[False]:
            self._parts.append((False, torch.optim.AdamW(groups[False], lr, betas, eps, weight_decay)))
        super().__init__([group for _, part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for is_muon, part in self._parts:
            # Groups and states are those of this optimizer, which schedulers and `load_state_dict` change.
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["muon"] == is_muon]
            part.step()
        return loss
