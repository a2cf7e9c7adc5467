# SPDX-License-Identifier: Apache-2.0
"""The orderly end of a run on several processes."""

import gc

from accelerate import PartialState


def shut_down_processes() -> None:
    """Waits until all processes of a run have called this, then destroys torch's process group.

    A process that exits while its peers still communicate makes them abort. Call it as the last statement of a program, outside of
    `finally`: after an exception the process must exit at once, so that the launcher ends the others, instead of waiting for them.
    The caller should hold no model or trainer anymore. Without several processes it does nothing.
    """
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
    # A model in DistributedDataParallel is part of reference cycles and owns the process group: its threads run until it is collected, and
    # abort the process ("terminate called without an active exception") if a peer exits first.
    gc.collect()
