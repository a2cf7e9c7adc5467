# SPDX-License-Identifier: Apache-2.0
import importlib
import sys

import pytest

import llava_st_hf
import llava_st_hf.data
import llava_st_hf.evaluation
import llava_st_hf.training
from llava_st_hf.deprecation import MOVED_MODULES, RENAMED


@pytest.mark.parametrize("old", sorted(MOVED_MODULES))
def test_old_module_paths_are_importable_with_a_warning(old):
    sys.modules.pop(f"llava_st_hf.{old}", None)
    with pytest.warns(FutureWarning, match=f"llava_st_hf.{old} is now llava_st_hf.{MOVED_MODULES[old]}"):
        moved = importlib.import_module(f"llava_st_hf.{old}")
    new = importlib.import_module(f"llava_st_hf.{MOVED_MODULES[old]}")
    public = [name for name in vars(new) if not name.startswith("_")]
    assert all(getattr(moved, name) is getattr(new, name) for name in public)
    with pytest.raises(AttributeError):
        _ = moved.no_such_name


@pytest.mark.parametrize("package", [llava_st_hf, llava_st_hf.data, llava_st_hf.evaluation, llava_st_hf.training])
def test_old_public_names_return_the_renamed_object_with_a_warning(package):
    renamed = {old: new for old, new in RENAMED.items() if new in package.__all__}
    assert renamed
    for old, new in renamed.items():
        with pytest.warns(FutureWarning, match=f"{package.__name__}.{old} is now {package.__name__}.{new}"):
            assert getattr(package, old) is getattr(package, new)


def test_old_names_of_moved_modules_return_the_renamed_object():
    with pytest.warns(FutureWarning, match="processor_for is now .*add_coordinate_tokens_to_processor"):
        from llava_st_hf.conversion_llava_st import processor_for
    from llava_st_hf.checkpoints.conversion import add_coordinate_tokens_to_processor

    assert processor_for is add_coordinate_tokens_to_processor


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = llava_st_hf.no_such_name
