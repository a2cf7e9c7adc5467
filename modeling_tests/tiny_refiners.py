# SPDX-License-Identifier: Apache-2.0
"""Tiny object detectors and video segmentation models with random weights, and a refiner that finds white squares."""

import functools

import numpy as np
import torch
from transformers import (
    BertTokenizer,
    CLIPTokenizer,
    DetrImageProcessor,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    OmDetTurboConfig,
    OmDetTurboForObjectDetection,
    OmDetTurboProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    OwlViTProcessor,
    ResNetConfig,
    Sam2ImageProcessor,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
    Sam3ImageProcessor,
    Sam3VideoConfig,
    Sam3VideoModel,
    Sam3VideoProcessor,
)

from llava_st_hf import Box
from llava_st_hf.refinement import Target, encode_mask
from llava_st_hf.refinement.masks import mask_box


SEGMENTER_WIDTH = 128  # channels, above the 64 of a memory
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def clip_tokenizer(max_length: int) -> CLIPTokenizer:
    """One token per lower-case letter."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=max_length)


def clip_text(max_length: int) -> dict:
    count = len(clip_tokenizer(max_length))
    ids = {"bos_token_id": count - 2, "eos_token_id": count - 1, "pad_token_id": count - 1}
    return {**SMALL, "vocab_size": count, "max_position_embeddings": max_length, **ids}


def backbone() -> ResNetConfig:
    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 32], depths=[1] * 4, out_features=["stage2", "stage3", "stage4"])


def owl(config_class, model_class, image_processor_class, processor_class):
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    model = model_class(config_class(text_config=clip_text(16), vision_config=vision, projection_dim=16))
    return model, processor_class(image_processor_class(size={"height": 32, "width": 32}), clip_tokenizer(16))


def grounding_dino(config_class, model_class, **options):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "red", "circle", "the"]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    twice = ("decoder_layers", "encoder_attention_heads", "decoder_attention_heads", "encoder_n_points", "decoder_n_points")
    config = config_class(
        text_config={"model_type": "bert", "vocab_size": len(words), "max_position_embeddings": 64, **SMALL},
        backbone_config=backbone(),
        **{"d_model": 32, "encoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 10, "max_text_len": 12},
        **dict.fromkeys(twice, 2),
        **options,
    )
    return model_class(config), GroundingDinoProcessor(
        GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}), tokenizer
    )


def omdet_turbo():
    config = OmDetTurboConfig(
        text_config={"model_type": "clip_text_model", "projection_dim": 16, **clip_text(77)},
        backbone_config=backbone(),
        use_timm_backbone=False,
        **{"apply_layernorm_after_vision_backbone": False, "image_size": 64, "encoder_in_channels": [8, 16, 32]},
        **{"encoder_hidden_dim": 32, "decoder_hidden_dim": 32, "task_encoder_hidden_dim": 32, "vision_features_channels": [32] * 3},
        **{"text_projection_in_dim": 16, "text_projection_out_dim": 16, "class_embed_dim": 16, "num_queries": 10, "hidden_expansion": 1},
        **{"encoder_attention_heads": 2, "decoder_num_heads": 2, "decoder_num_layers": 2, "encoder_layers": 1, "decoder_num_points": 2},
        **{"encoder_dim_feedforward": 32, "decoder_dim_feedforward": 32, "disable_custom_kernels": True},
    )
    image_processor = DetrImageProcessor(size={"height": 64, "width": 64})
    return OmDetTurboForObjectDetection(config), OmDetTurboProcessor(image_processor, clip_tokenizer(77))


DETECTORS = {
    "owlv2": functools.partial(owl, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor),
    "owlvit": functools.partial(owl, OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, OwlViTProcessor),
    "grounding-dino": functools.partial(grounding_dino, GroundingDinoConfig, GroundingDinoForObjectDetection, disable_custom_kernels=True),
    "mm-grounding-dino": functools.partial(grounding_dino, MMGroundingDinoConfig, MMGroundingDinoForObjectDetection),
    "omdet-turbo": omdet_turbo,
}


@functools.cache
def tiny_detector(kind: str):
    """`(model, processor)` of a detector with random weights."""
    torch.manual_seed(0)
    model, processor = DETECTORS[kind]()
    return model.eval(), processor


def tracker(image_size: int) -> dict:
    """Configuration of the parts that SAM 2 and the tracker of SAM 3 share, with memories of three frames and pointers of four.
    Images have 4×4 cells."""
    width = SEGMENTER_WIDTH
    memory = {
        **{f"memory_attention_{name}": value for name, value in (("hidden_size", width), ("num_layers", 1), ("rope_feat_sizes", [4, 4]))},
        **{"memory_attention_feed_forward_hidden_size": 32, "memory_encoder_hidden_size": width, "mask_downsampler_embed_dim": width},
        **{"memory_fuser_num_layers": 1, "memory_fuser_embed_dim": width, "memory_fuser_intermediate_dim": 32},
        **{"num_maskmem": 3, "max_object_pointers_in_encoder": 4, "image_size": image_size},
    }
    decoder = {"mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 16, "iou_head_depth": 2}
    return {
        "prompt_encoder_config": {"hidden_size": width, "image_size": image_size, "patch_size": image_size // 4, "mask_input_channels": 4},
        "mask_decoder_config": {"hidden_size": width, **decoder},
        **memory,
    }


def square(image_size: int) -> dict:
    return {"size": {"height": image_size, "width": image_size}, "mask_size": {"height": 16, "width": 16}}


@functools.cache
def tiny_sam2():
    """`(model, processor)` of SAM 2 with random weights, which takes every object as visible."""
    torch.manual_seed(0)
    hiera = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [64, 64],
        **{"patch_kernel_size": [7, 7], "patch_stride": [4, 4], "patch_padding": [3, 3]},
        **{"blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 2]},
        **{"window_size_per_stage": [8, 4, 8, 4], "global_attention_blocks": [3], "window_positional_embedding_background_size": [2, 2]},
    }
    vision = {"backbone_config": hiera, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": SEGMENTER_WIDTH}
    vision |= {"model_type": "sam2_vision_model", "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_top_down_levels": [2, 3]}
    model = Sam2VideoModel(Sam2VideoConfig(vision_config=vision, **tracker(64))).eval()
    with torch.no_grad():
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(5.0)
    return model, Sam2VideoProcessor(Sam2ImageProcessor(**square(64)), Sam2VideoVideoProcessor(size=square(64)["size"]))


@functools.cache
def tiny_sam3():
    """`(model, processor)` of SAM 3 with random weights, which takes everything as an object of every text."""
    torch.manual_seed(0)
    width = SEGMENTER_WIDTH
    vit = {**SMALL, "model_type": "sam3_vit_model", "image_size": 56, "patch_size": 14, "window_size": 2}
    vit |= {"global_attn_indexes": [0], "pretrain_image_size": 28, "hidden_size": 32}
    vision = {"model_type": "sam3_vision_model", "backbone_config": vit, "fpn_hidden_size": width}
    vision["backbone_feature_sizes"] = [[16, 16], [8, 8], [4, 4]]
    layers = {"hidden_size": width, "num_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    detector = {
        "model_type": "sam3",
        "vision_config": vision,
        "text_config": {"model_type": "clip_text_model", "projection_dim": width, **clip_text(32)},
        "geometry_encoder_config": layers,
        "detr_encoder_config": layers,
        "detr_decoder_config": {**layers, "num_queries": 6},
        "mask_decoder_config": {"hidden_size": width, "num_attention_heads": 4},
    }
    found = {"score_threshold_detection": 0.0, "new_det_thresh": 0.0, "det_nms_thresh": 0.9}
    follow = {"model_type": "sam3_tracker_video", "vision_config": vision, **tracker(56)}
    model = Sam3VideoModel(Sam3VideoConfig(detector_config=detector, tracker_config=follow, low_res_mask_size=16, **found)).eval()
    processor = Sam3VideoProcessor(Sam3ImageProcessor(**square(56)), Sam2VideoVideoProcessor(size=square(56)["size"]), clip_tokenizer(32))
    return model, processor


class WhiteSquares:
    """Refiner that finds the white pixels of a frame, except in the frames of `missed`."""

    def __init__(self, missed=()):
        self.missed, self.targets = set(missed), []

    def locate(self, target: Target) -> dict[int, Box]:
        self.targets.append(target)
        found = {}
        for frame, pixels in zip(target.frames, target.read(target.frames), strict=True):
            mask = (pixels > 160).all(axis=2)
            if frame not in self.missed and (box := mask_box(mask)) is not None:
                found[frame] = Box(*box, frame=frame, score=0.9, mask=encode_mask(mask))
        return found


def square_frames(num_frames: int, height: int = 48, width: int = 96) -> np.ndarray:
    """(num_frames, height, width, 3) uint8: frame k has a white square of 16 pixels whose left edge is at 2k, on black."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[16:32, 2 * number : 2 * number + 16] = 255
    return frames
