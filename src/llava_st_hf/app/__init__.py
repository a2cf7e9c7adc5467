# SPDX-License-Identifier: Apache-2.0
"""Web page for questions about videos and images: `llava-st app`. Needs the extra `app` (Gradio), which only `page` and `server` import."""
