# SPDX-License-Identifier: Apache-2.0
"""Names of version 0.1, accepted with a `FutureWarning` until version 0.3.

Version 0.2 moved the modules into packages by purpose (`llava_st_hf.modeling_llava_st` is `llava_st_hf.model.modeling_llava_st`)
and renamed functions and classes. The tables are here; CHANGELOG.md lists them for users.
"""

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from .model.renamed_arguments_llava_st import warn_renamed


_PACKAGE = __name__.rpartition(".")[0]
#: Old module → new module, relative to the package.
MOVED_MODULES = {
    "adapters_llava_st": "checkpoints.adapters",
    "bundled": "shapes.demo_model",
    "conversion_llava_st": "checkpoints.conversion",
    "coordinates": "model.coordinates_llava_st",
    "data.shapes": "shapes.scenes",
    "data.shapes_files": "shapes.files",
    "data.shapes_questions": "shapes.questions",
    "evaluation.lmms_eval_plugin": "integrations.lmms_eval.plugin",
    "evaluation.released_protocol": "evaluation.original_protocol",
    "grounding": "model.grounding_llava_st",
    "known_medium_llava_st": "model.cached_media_llava_st",
    "released_layout_llava_st": "model.original_checkpoint_llava_st",
    "starting_llava_st": "checkpoints.stage1_init",
    "tasks": "model.tasks_llava_st",
    **{
        name: f"model.{name}"
        for name in (
            "batch_feature_llava_st", "configuration_llava_st", "control_tokens_llava_st", "downloads_llava_st",
            "generation_llava_st", "image_files_llava_st", "image_processing_llava_st", "inline_coordinates_llava_st",
            "inline_spelling_llava_st", "lape_llava_st", "loss_llava_st", "media_files_llava_st", "media_items_llava_st",
            "messages_llava_st", "modeling_llava_st", "outputs_llava_st", "packer_llava_st", "pipeline_llava_st",
            "processing_llava_st", "video_animation_llava_st", "video_containers_llava_st", "video_decoding_llava_st",
            "video_frames_llava_st", "video_index_llava_st", "video_metadata_llava_st", "video_processing_llava_st",
            "video_reading_llava_st", "video_sample_tables_llava_st", "video_sampling_llava_st", "vision_llava_st",
        )
    },
}  # fmt: skip
#: Old name → new name, in whichever module it is.
RENAMED = {
    "BUNDLED_MODEL": "DEMO_MODEL_PATH",
    "Asked": "ParseContext",
    "Grounding": "GroundingResult",
    "KnownMediumProcessor": "CachedMediaProcessor",
    "LlavaSTReleasedConfig": "LlavaSTOriginalConfig",
    "Media": "MediaInfo",
    "PARTS": "TRAINABLE_MODULES",
    "READERS": "ANSWER_PARSERS",
    "add_coordinate_rows": "add_coordinate_tokens",
    "check_run": "check_resume_compatibility",
    "group_by_medium": "pack_by_video",
    "last_checkpoint": "get_last_checkpoint",
    "make_trainable": "prepare_model_for_training",
    "processor_for": "add_coordinate_tokens_to_processor",
    "score_released": "score_original",
    "start_stage1": "create_stage1_model",
    "starting_folder": "prepare_base_model",
}
#: Old metric → new metric, in the scores of the default protocol. The original protocol keeps the names of the original program.
RENAMED_METRICS = {"mtiou": "m_tiou", "msiou": "m_siou", "mstiou": "m_viou", "named@0.5": "object_recall@0.5"}


def renamed_attributes(module: ModuleType, lazy: Mapping[str, str] | None = None) -> Callable[[str], object]:
    """A module's `__getattr__` (PEP 562) that returns the object of the new name for an old name of `RENAMED`.

    Args:
        lazy: names of the module that are imported when they are first used, each with the submodule that defines it.

    Raises:
        AttributeError: of names that `lazy` and `RENAMED` do not list, or whose new name the module does not define.
    """

    def get(name: str) -> object:
        if lazy is not None and name in lazy:
            return getattr(import_module(f"{module.__name__}.{lazy[name]}"), name)
        new = RENAMED.get(name)
        if new is None or new not in vars(module):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        warn_renamed(f"{module.__name__}.{name}", f"{module.__name__}.{new}", stacklevel=3)
        return vars(module)[new]

    return get


def renamed_argument(old: str, new: str) -> Callable[[type], type]:
    """Class decorator: the constructor accepts the keyword `old` as `new`, and the attribute `old` returns `new`, both with a warning."""

    def decorate(cls: type) -> type:
        initialize = cls.__init__

        @wraps(initialize)
        def accept(self, *args, **kwargs) -> None:
            if old in kwargs:
                warn_renamed(f"The argument {old} of {cls.__name__}", new, stacklevel=3)
                kwargs[new] = kwargs.pop(old)
            initialize(self, *args, **kwargs)

        def get(self) -> object:
            warn_renamed(f"{cls.__name__}.{old}", new, stacklevel=3)
            return getattr(self, new)

        cls.__init__ = accept
        setattr(cls, old, property(get))
        return cls

    return decorate


class _MovedModules(MetaPathFinder, Loader):
    """Imports an old module path as a module that forwards every attribute to the module of the new path."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname.removeprefix(f"{_PACKAGE}.") in MOVED_MODULES else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None  # the default: an empty module

    def exec_module(self, module: ModuleType) -> None:
        new = f"{_PACKAGE}.{MOVED_MODULES[module.__name__.removeprefix(f'{_PACKAGE}.')]}"
        target = import_module(new)
        warn_renamed(module.__name__, new, stacklevel=2)

        def forward(name: str) -> object:
            if name.startswith("__"):  # the import system's questions are about this module
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            if name in RENAMED and name not in vars(target):
                warn_renamed(f"{module.__name__}.{name}", f"{new}.{RENAMED[name]}", stacklevel=3)
                name = RENAMED[name]
            return getattr(target, name)

        module.__dict__["__getattr__"] = forward


def accept_moved_modules() -> None:
    """Makes the module paths of version 0.1 importable. Called on import of the package."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
