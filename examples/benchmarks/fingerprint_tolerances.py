# SPDX-License-Identifier: Apache-2.0
"""What arithmetic moves in the features and logits of a fingerprint: the measurements behind `TOLERANCES` of checkpoints/fingerprint.py.

python examples/benchmarks/fingerprint_tolerances.py [FOLDER ...]

For the demo model, small models of random weights, and the checkpoints given: the largest difference of a sampled feature from float32, in
standard deviations of the features, and the largest change of the difference of two logits, in standard deviations of the logits of a
step, with the tokens of the float32 answer as input. 8 and 4 bits are simulated: each weight of all linear layers but the head is rounded,
per output channel (8 bits) and per group of 64 inputs (4 bits), and computed with in bfloat16. Below them, errors that a check must find.
"""

import sys
import tempfile

import torch

from llava_st_hf import DEMO_MODEL_PATH, LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.checkpoints.fingerprint import TOLERANCES, Fingerprint, compute_fingerprint
from llava_st_hf.examples.tiny_model import save_tiny_model


def round_weights(model, bits: int, group: int | None) -> None:
    """Rounds the weights of all linear layers but the head to integers of `bits` with one scale per group of inputs."""
    most = 2 ** (bits - 1) - 1
    for layer in model.model.modules():
        if isinstance(layer, torch.nn.Linear):
            weight = layer.weight.data.float()
            size = group if group and weight.shape[1] % group == 0 else weight.shape[1]
            groups = weight.view(len(weight), -1, size)  # (outputs, groups, inputs)
            scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / most
            layer.weight.data = (torch.round(groups / scale) * scale).view_as(weight).to(layer.weight.dtype)


@torch.no_grad()
def run(model, processor, fingerprint: Fingerprint, sampled=None) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, hidden) features and (steps, vocabulary) logits, with the fingerprint's answer as input."""
    inputs = processor.apply_chat_template(
        fingerprint.chat(fingerprint.video), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    pixels = inputs["pixel_values_videos"]
    if sampled is not None:
        pixels = sampled(pixels)
    encoded = model.get_video_features(pixels.to(model.dtype))
    length = inputs["input_ids"].shape[1]
    ids = torch.cat((inputs["input_ids"], torch.tensor([fingerprint.token_ids])), dim=1)
    logits = model(input_ids=ids, mm_encoder_outputs={"video": encoded}).logits[0, length - 1 : -1].float()
    return encoded.pooler_output[0].float(), logits


def measure(name: str, folder: str) -> None:
    processor = LlavaSTProcessor.from_pretrained(folder)

    def load(dtype):
        return LlavaSTForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()

    model = load(torch.float32)
    fingerprint = compute_fingerprint(model, processor, "")
    features, logits = run(model, processor, fingerprint)
    places = torch.tensor([[position, channel] for position, channel, _ in fingerprint.features])
    margins = sorted(margin / fingerprint.logit_std for margin in fingerprint.margins)
    print(f"{name}: margins in std of the logits: least {margins[0]:.4f}, median {margins[len(margins) // 2]:.4f}")

    def report(how: str, model, **kwargs) -> None:
        found_features, found_logits = run(model, processor, fingerprint, **kwargs)
        feature = (found_features - features)[places[:, 0], places[:, 1]].abs().max().item() / fingerprint.feature_std
        moved = found_logits - logits  # (steps, vocabulary)
        best = torch.tensor(fingerprint.token_ids)[:, None]
        candidates = logits.topk(10).indices  # only tokens near the top can be chosen instead
        moved = (moved.gather(1, best) - moved.gather(1, candidates)).abs().max().item() / fingerprint.logit_std
        print(f"  {how:34} features {feature:.2e}  logits {moved:.2e}")

    report("float32, eager", LlavaSTForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager"))
    for dtype in (torch.float16, torch.bfloat16):
        report(str(dtype).removeprefix("torch."), load(dtype))
    for bits, group in ((8, None), (4, 64)):
        rounded = load(torch.bfloat16)
        round_weights(rounded, bits, group)
        report(f"{bits}-bit", rounded)
    report("wrong: frames one later", model, sampled=lambda pixels: torch.cat((pixels[:, 1:], pixels[:, -1:]), dim=1))
    report("wrong: red and blue exchanged", model, sampled=lambda pixels: pixels.flip(2))
    coordinates = model.config.coordinates
    head = model.lm_head.weight.data
    rows = slice(coordinates.start_token_id, coordinates.end_token_id)
    kept = head[rows].clone()
    head[rows] = 0
    report("wrong: no output rows of LAPE", model)
    head[rows] = kept


def main() -> None:
    print("tolerances: " + ", ".join(f"{name} features {f:g} logits {t:g}" for name, (f, t) in TOLERANCES.items()))
    measure("demo model", DEMO_MODEL_PATH)
    for seed in range(2):
        with tempfile.TemporaryDirectory() as folder:
            save_tiny_model(folder, seed)
            measure(f"random weights, seed {seed}", folder)
    for folder in sys.argv[1:]:
        measure(folder, folder)


if __name__ == "__main__":
    main()
