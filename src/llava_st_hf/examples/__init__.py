# SPDX-License-Identifier: Apache-2.0
"""Programs that the documentation runs, for example `python -m llava_st_hf.examples.three_stages`."""
