# SPDX-License-Identifier: Apache-2.0
import pytest

from llava_st_hf.model.compatibility_llava_st import check_model_matches_processor
from modeling_tests.factories import tiny_config
from modeling_tests.processors import model_for, tiny_processor


@pytest.fixture(scope="module")
def config():
    return model_for(tiny_processor()).config


@pytest.mark.parametrize("bins", [(100, 100), (50, 20)])
def test_check_model_matches_processor_same_checkpoint_passes(bins):
    processor = tiny_processor(num_temporal_bins=bins[0], num_spatial_bins=bins[1])
    check_model_matches_processor(model_for(processor).config, processor)


def test_check_model_matches_processor_stage_1_pair_passes():
    processor = tiny_processor(num_temporal_bins=0, num_spatial_bins=0)
    check_model_matches_processor(model_for(processor, use_coordinate_tokens=False).config, processor)


@pytest.mark.parametrize(
    "setting",
    [
        {"ignore_prompt_x_coordinates": True}, {"use_downsample_image": True}, {"packer_spatial_stride": 1}, {"packer_temporal_stride": 2},
        {"fast_spatial_stride": 1}, {"patch_size": 7},
    ],
)  # fmt: skip
def test_check_model_matches_processor_other_setting_raises_with_both_values(config, setting):
    ((name, value),) = setting.items()
    message = rf"do not belong together: {name} is {getattr(config, name, 14)} in the model and {value} in the processor\."
    with pytest.raises(ValueError, match=message):
        check_model_matches_processor(config, tiny_processor(**setting))


def test_check_model_matches_processor_other_image_size_raises(config):
    with pytest.raises(ValueError, match=r"image size is \(126, 126\) in the model and \(252, 252\) in the processor; video size"):
        check_model_matches_processor(config, tiny_processor(size=252))


def test_check_model_matches_processor_several_differences_lists_all(config):
    with pytest.raises(ValueError, match=r"temporal bins is 100 .* 50 .*; number of spatial bins is 100 .* 20 "):
        check_model_matches_processor(config, tiny_processor(num_temporal_bins=50, num_spatial_bins=20))


def test_check_model_matches_processor_other_first_coordinate_id_raises(config):
    vocab_size = config.text_config.vocab_size + 1
    other = tiny_config(100, 100, vision_config=config.vision_config.to_dict(), text_config={"vocab_size": vocab_size})
    with pytest.raises(ValueError, match=r"id of <TEMP-000> is \d+ in the model and \d+ in the processor"):
        check_model_matches_processor(other, tiny_processor())
