# SPDX-License-Identifier: Apache-2.0
"""The orderly end of a run on several processes."""

from accelerate import PartialState


def shut_down_processes() -> None:
    """Waits until all processes of a run have called this, then destroys torch's process group.

    A process that exits while its peers still communicate makes them abort. Call it as the last statement of a program, outside of
    `finally`: after an exception the process must exit at once, so that the launcher ends the others, instead of waiting for them.
    Without several processes it does nothing.
    """
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
