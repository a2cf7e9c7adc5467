# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders: conversion of the original layout, adapters, the stage-1 model and model cards."""
