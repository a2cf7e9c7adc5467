# SPDX-License-Identifier: Apache-2.0
"""Which arguments of `generate` the decode loop supports."""

from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList, cache_utils
from transformers.cache_utils import Cache
from transformers.generation import logits_process, stopping_criteria

from .grammar_logits_llava_st import GrammarLogitsProcessor


# Processors whose result depends on the scores alone: one call processes all tokens of a pass.
POINTWISE_PROCESSORS = (
    logits_process.TemperatureLogitsWarper,
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.MinPLogitsWarper,
    logits_process.TypicalLogitsWarper,
    logits_process.EpsilonLogitsWarper,
    logits_process.EtaLogitsWarper,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.SuppressTokensLogitsProcessor,
)
# Processors that depend on earlier tokens but keep no state, so that calls for drafts that are rejected have no effect.
_STATELESS_PROCESSORS = (
    *POINTWISE_PROCESSORS,
    logits_process.RepetitionPenaltyLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.MinLengthLogitsProcessor,
    logits_process.MinNewTokensLengthLogitsProcessor,
    logits_process.NoBadWordsLogitsProcessor,
    logits_process.SequenceBiasLogitsProcessor,
    logits_process.ForcedEOSTokenLogitsProcessor,
    logits_process.PrefixConstrainedLogitsProcessor,
)
_CACHE_LAYERS = (
    cache_utils.DynamicLayer,
    cache_utils.DynamicSlidingWindowLayer,
    cache_utils.StaticLayer,
    cache_utils.StaticSlidingWindowLayer,
)
OWN_CRITERIA = (stopping_criteria.MaxLengthCriteria, stopping_criteria.EosTokenCriteria)


def unsupported(
    model,
    generation_config: GenerationConfig,
    logits_processor: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    batch_size: int,
    cache: Cache | None,
    returns_cache: bool,
    synced_gpus: bool,
) -> str | None:
    """
    Checks whether the decode loop supports a call of `generate`.

    Returns:
        `str`: What is not supported and what to do, or None.
    """
    attention = model.config.get_text_config()._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"attn_implementation={attention!r} takes no mask of drafted tokens. Load the model with attn_implementation='sdpa'."
    if synced_gpus:
        return "The processes of FSDP or ZeRO-3 must run the same number of passes. Leave this argument out."
    for name in ("output_attentions", "output_hidden_states", "output_scores", "output_logits"):
        if generation_config.return_dict_in_generate and getattr(generation_config, name):
            return f"{name}=True is not supported. Leave it out; output_coordinate_scores=True returns log probabilities."
    if cache is None:
        return "use_cache=False computes all tokens in each pass. Leave it out."
    for layer in cache.layers:
        if type(layer) not in _CACHE_LAYERS:
            return f"The KV cache has layers of type {type(layer).__name__}. Use cache_implementation='dynamic' or 'static'."
        if layer.is_sliding and returns_cache:
            return "A KV cache with sliding windows cannot be given or returned. Leave cache and return_dict_in_generate out."
    if cache.offloading:
        return "The KV cache is offloaded. Use cache_implementation='dynamic' or 'static'."
    supported = POINTWISE_PROCESSORS if batch_size > 1 else _STATELESS_PROCESSORS
    for processor in logits_processor:
        if type(processor) not in (*supported, GrammarLogitsProcessor):
            reason = (
                "depends on earlier tokens; use a batch of one prompt" if type(processor) in _STATELESS_PROCESSORS else "may keep state"
            )
            return f"The logits processor {type(processor).__name__} {reason}."
    if sum(isinstance(processor, GrammarLogitsProcessor) for processor in logits_processor) > 1:
        return "Answers follow one grammar. Give grammar or a GrammarLogitsProcessor, not both."
    for criterion in criteria:
        if batch_size > 1 and not isinstance(criterion, (*OWN_CRITERIA, stopping_criteria.MaxTimeCriteria)):
            return f"The stopping criterion {type(criterion).__name__} needs a batch of one prompt."
    return None
