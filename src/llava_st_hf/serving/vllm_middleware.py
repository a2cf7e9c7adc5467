# SPDX-License-Identifier: Apache-2.0
"""What vLLM imports in each process that serves HTTP: our middleware, and the registration of the reader of media."""

from .media_connector import RequestMediaConnector
from .startup_check import StartupCheck
from .upload_limit import UploadLimit


__all__ = ["RequestMediaConnector", "StartupCheck", "UploadLimit"]
