# SPDX-License-Identifier: Apache-2.0
"""Decode loop of LLaVA-ST for `generate`: several tokens per pass, verified drafts, no host synchronisation within a pass.

Each pass of the decoder takes the last token of every row and drafts of the next ones (`drafts_llava_st`). Token j of the pass gives the
distribution after itself; its token is chosen as in `generate`, by argmax or by sampling, and a draft is accepted while it is the token
chosen before it. So a pass adds between one token and all drafts and one more, greedy answers are those of one token per pass, and samples
have the same distribution.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import Cache

from .cache_name_llava_st import CACHE_NAME
from .captured_step_llava_st import CapturedStep, DelayedFlag
from .compilation_llava_st import compiled_calls
from .coordinates_llava_st import AXES
from .decode_support_llava_st import OWN_CRITERIA, POINTWISE_PROCESSORS, unsupported
from .drafts_llava_st import DraftHistory, TokenClasses
from .grammar_logits_llava_st import GrammarLogitsProcessor
from .outputs_llava_st import LlavaSTGenerateOutput
from .slot_cache_llava_st import SlotCache


# Columns by which the part of the cache that is read grows in a loop that is not captured.
_COLUMNS = 64
# Number of drafted tokens of a pass. On a GPU a pass over 24 tokens takes 1.3 times as long as one over a single token.
NUM_DRAFTS = {"cpu": 16}
_NUM_DRAFTS_ON_ACCELERATORS = 23


@dataclass
class DecodeSettings:
    """
    Settings of the decode loop that are not part of a generation configuration.

    Args:
        speculative (`bool`, *optional*, defaults to `False`):
            Whether to draft tokens. None: where that does not change answers, as `generate` decides before it starts the loop.
        draft_templates (`list[list[int]]`, *optional*):
            For each prompt the tokens of an answer in its usual form, with any bins, or an empty list.
        coordinate_tolerance (`int`, *optional*, defaults to 0):
            Accept a drafted coordinate that differs by up to this number of bins from the chosen one. Answers then differ from those
            without drafts.
        output_coordinate_scores (`bool`, *optional*, defaults to `False`):
            Whether to return log probabilities of the chosen tokens and of all coordinate tokens at each step.
        compile (`bool`, *optional*, defaults to `False`):
            Whether to compile the decoder's pass, and on a GPU to record it as a CUDA graph.
    """

    speculative: bool | None = False
    draft_templates: list[list[int]] | None = None
    coordinate_tolerance: int = 0
    output_coordinate_scores: bool = False
    compile: bool = False


class DecodeLoop:
    """
    The decode loop as a `custom_generate` callable of `generate`.

    Args:
        settings ([`DecodeSettings`]):
            Settings of the loop.
        only_where_supported (`bool`, *optional*, defaults to `False`):
            Decode as transformers does where the loop does not support the other arguments; otherwise these are errors.
        cache_is_given (`bool`, *optional*, defaults to `False`):
            Whether the caller passes a KV cache, which must hold all tokens afterwards.
        synced_gpus (`bool`, *optional*, defaults to `False`):
            Whether all processes must run the same number of passes.
        streamer (`BaseStreamer`, *optional*):
            Gets the new tokens of each pass.
    """

    def __init__(
        self,
        settings: DecodeSettings,
        only_where_supported: bool = False,
        cache_is_given: bool = False,
        synced_gpus: bool = False,
        streamer=None,
    ):
        self.settings, self.only_where_supported, self.cache_is_given = settings, only_where_supported, cache_is_given
        self.synced_gpus, self.streamer = synced_gpus, streamer
        self.num_passes = 0  # passes of the decoder in the last call, without the prompt's

    def __call__(
        self,
        model,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs,
    ):
        returns_cache = self.cache_is_given or bool(generation_config.return_dict_in_generate)
        cache = model_kwargs.get(CACHE_NAME)
        reason = unsupported(
            model, generation_config, logits_processor, stopping_criteria, len(input_ids), cache, returns_cache, self.synced_gpus
        )
        if reason is not None and self.only_where_supported and not (self.settings.output_coordinate_scores or self.settings.compile):
            return model._sample(
                input_ids,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                synced_gpus=self.synced_gpus,
                streamer=self.streamer,
                **model_kwargs,
            )
        if reason is not None:
            settings = self.settings
            name = next(name for name in ("speculative", "output_coordinate_scores", "compile") if getattr(settings, name))
            raise ValueError(f"{name}=True: {reason}")
        decoding = _Decoding(
            model, input_ids, logits_processor, stopping_criteria, generation_config, self.streamer, self.settings, returns_cache
        )
        output = decoding.run(model_kwargs)
        self.num_passes = decoding.num_passes
        return output


@dataclass
class _Answers:
    """Tensors of the answers that each pass updates in place. The last token of an answer is not in the KV cache yet."""

    lengths: torch.Tensor  # (batch, 1) number of tokens
    finished: torch.Tensor  # (batch, 1) bool
    last: torch.Tensor  # (batch, 1) last token
    token_ids: torch.Tensor  # (batch, max_new_tokens + tokens of a pass), padding behind the last token
    carried: torch.Tensor  # (batch, drafts, 3) bins predicted for the next positions
    num_carried: torch.Tensor  # (batch, 1)
    state: torch.Tensor | None = None  # (batch, registers) of the grammar
    logprobs: torch.Tensor | None = None  # (batch, max_new_tokens + tokens of a pass)
    coordinate_logits: torch.Tensor | None = None  # (batch, max_new_tokens + tokens of a pass, coordinates)


class _Decoding:
    """One call of the loop."""

    def __init__(
        self, model, input_ids, logits_processor, criteria, generation_config, streamer, settings: DecodeSettings, returns_cache: bool
    ):
        self.model, self.input_ids, self.processors, self.settings = model, input_ids, logits_processor, settings
        self.config, self.streamer, self.generation_config = model.config, streamer, generation_config
        self.device = model.device if input_ids.device.type == "cpu" else input_ids.device
        self.vocabulary = self.config.coordinates if self.config.use_coordinate_tokens else None
        self.num_drafts = 0
        if settings.speculative:
            self.num_drafts = NUM_DRAFTS.get(self.device.type, _NUM_DRAFTS_ON_ACCELERATORS)
        self.max_new_tokens = generation_config.max_length - input_ids.shape[1]
        self.do_sample = generation_config.do_sample
        self.ends = generation_config._eos_token_tensor
        self.ends = torch.tensor([], dtype=torch.long) if self.ends is None else self.ends
        self.ends = self.ends.flatten().to(self.device)
        pad = generation_config._pad_token_tensor
        self.pad = 0 if pad is None else int(pad)
        self.grammar = next((p for p in logits_processor if isinstance(p, GrammarLogitsProcessor)), None)
        self.is_pointwise = all(type(p) in POINTWISE_PROCESSORS or p is self.grammar for p in logits_processor)  # all rows at once
        self.criteria = StoppingCriteriaList(c for c in criteria if not isinstance(c, OWN_CRITERIA))
        self.steps = torch.arange(1 + self.num_drafts, device=self.device)
        self.num_passes = 0
        self.returns_cache = returns_cache
        self._reads_tokens = streamer is not None or (len(self.criteria) > 0 and len(input_ids) == 1)

    # ------------------------------------------------------------ Prompt

    def run(self, model_kwargs: dict):
        """Computes the prompt, then passes until all answers are finished."""
        outputs = self.model._prefill(self.input_ids, self.generation_config, model_kwargs)
        prefilled = outputs[CACHE_NAME]
        self.prompt_length = int(prefilled.get_seq_length())
        batch = len(self.input_ids)
        attention_mask = model_kwargs.get("attention_mask")
        if attention_mask is None:
            attention_mask = torch.ones(batch, self.prompt_length)
        attention_mask = attention_mask.to(self.device)[:, -self.prompt_length :].bool()
        self.next_position = attention_mask.sum(1, keepdim=True)  # (batch, 1) position of the first token of the answer
        capacity = self.prompt_length + self.max_new_tokens + len(self.steps)
        capacity = -(-capacity // _COLUMNS) * _COLUMNS
        self.visible = torch.nn.functional.pad(attention_mask, (0, capacity - self.prompt_length), value=True)  # (batch, capacity)
        self.columns = torch.arange(capacity, device=self.device)
        self.cache = SlotCache(prefilled, self.prompt_length, capacity, release=not self.returns_cache)
        logits = outputs.logits[:, -1:].to(self.device, copy=True, dtype=torch.float32)  # (batch, 1, vocabulary)
        del outputs
        self._start(logits)
        self._read_tokens(0)
        self._passes()
        return self._output(prefilled)

    def _start(self, logits: torch.Tensor) -> None:
        """Chooses the first token of each answer, from the logits of the prompt's last token."""
        batch, vocab_size = len(logits), logits.shape[-1]
        width = self.max_new_tokens + len(self.steps)
        answers = self.answers = _Answers(
            lengths=torch.zeros(batch, 1, dtype=torch.long, device=self.device),
            finished=torch.zeros(batch, 1, dtype=torch.bool, device=self.device),
            last=torch.zeros(batch, 1, dtype=torch.long, device=self.device),
            token_ids=torch.full((batch, width), self.pad, device=self.device),
            carried=torch.zeros(batch, self.num_drafts, 3, dtype=torch.long, device=self.device),
            num_carried=torch.zeros(batch, 1, dtype=torch.long, device=self.device),
        )
        if self.grammar is not None:
            self.constraint = self.grammar.constraint.bound_to(vocab_size, None, self.device)
            answers.state = self.constraint.start_of(batch)
        if self.settings.output_coordinate_scores:
            count = 0 if self.vocabulary is None else len(self.vocabulary)
            answers.logprobs = torch.zeros(batch, width, device=self.device)
            answers.coordinate_logits = torch.zeros(batch, width, count, device=self.device)
        if self.num_drafts:
            self.classes = TokenClasses.from_vocabulary(self.config.coordinates, vocab_size, self.device)
            templates = self.settings.draft_templates or [[]]
            if batch % len(templates):
                raise ValueError(f"draft_templates has {len(templates)} entries for {batch} prompts. Give one for each, or one for all.")
            templates = [template for template in templates for _ in range(batch // len(templates))]
            prompt = self.input_ids.to(self.device)
            self.history = DraftHistory(self.classes, prompt, templates, self.max_new_tokens, self.num_drafts)
        no_drafts = torch.empty(batch, 0, dtype=torch.long, device=self.device)
        self._add(logits, no_drafts, None if answers.state is None else answers.state[:, None])

    # ------------------------------------------------------------ Passes

    def _passes(self) -> None:
        """Runs passes until all answers are finished."""
        captured = CapturedStep(self._step) if self.settings.compile and self._can_capture() else None
        # A pass that is not recorded waits for the host in any case: the flag is then read without delay.
        all_finished = None if captured is None else DelayedFlag()
        with compiled_calls(self.model.model.language_model) if self.settings.compile else nullcontext():
            while not self._stop(all_finished):
                before = int(self.answers.lengths[0]) if self._reads_tokens else 0
                if captured is not None:
                    captured(len(self.columns))
                elif self.settings.compile:
                    self._step(len(self.columns))
                else:  # only the columns that may hold tokens are read
                    end = self.prompt_length + int(self.answers.lengths.max()) + self.num_drafts
                    self._step(min(-(-end // _COLUMNS) * _COLUMNS, len(self.columns)))
                self.num_passes += 1
                self._read_tokens(before)

    def _can_capture(self) -> bool:
        """Whether a pass can be recorded as a CUDA graph: all on one GPU, and nothing in it runs on the host."""
        devices = set((self.model.hf_device_map if "hf_device_map" in vars(self.model) else {"": self.device}).values())
        return self.device.type == "cuda" and len(devices) == 1 and self.is_pointwise

    def _read_tokens(self, before: int) -> None:
        """Applies stopping criteria to the tokens from number `before` of a single answer, one by one, and gives them to the streamer."""
        if not self._reads_tokens:
            return
        answers = self.answers
        after = int(answers.lengths[0])
        for length in range(before + 1, after + 1) if self.criteria else ():
            ids = torch.cat((self.input_ids.to(self.device), answers.token_ids[:1, :length]), dim=1)
            if bool(self.criteria(ids, None).all()):
                after = length
                answers.lengths.fill_(length)
                answers.token_ids[:, length:] = self.pad
                answers.finished.fill_(True)
                break
        if self.streamer is not None and after > before:
            self.streamer.put(answers.token_ids[0, before:after].cpu())

    def _stop(self, all_finished: DelayedFlag | None) -> bool:
        """Whether no further pass is needed. `all_finished` reads the answers' flags with delay; None to read them at once."""
        if len(self.criteria) and len(self.input_ids) > 1:  # a limit of time
            ids = self.input_ids.to(self.device)
            if bool(self.criteria(ids, None).all()):
                return True
        finished = self.answers.finished.all()
        return bool(finished) if all_finished is None else all_finished.read(finished)

    def _step(self, end: int) -> None:
        """
        One pass of the decoder.

        Args:
            end: number of columns of the KV cache that it reads.
        """
        answers = self.answers
        drafts = answers.last[:, :0]  # (batch, 0)
        if self.num_drafts:
            drafts = self.history.draft(answers.lengths, answers.carried, answers.num_carried)  # (batch, drafts), -1 for none
        token_ids = torch.cat((answers.last, drafts.clamp(min=0)), dim=1)  # (batch, tokens)
        offsets = answers.lengths - 1 + self.steps  # (batch, tokens) in the answer
        columns = self.prompt_length + offsets
        self.cache.write_to(columns, end)
        logits = self.model(
            input_ids=token_ids,
            attention_mask=self._attention_mask(columns, end),
            position_ids=self.next_position + offsets,
            use_cache=True,
            return_dict=True,
            **{CACHE_NAME: self.cache},
        ).logits
        logits = logits.to(self.device, dtype=torch.float32)  # (batch, tokens, vocabulary)
        states = None
        if answers.state is not None:
            states = self.constraint.grammar.advance_all(answers.state, token_ids[:, 1:])  # (batch, tokens, registers)
        self._add(logits, drafts, states)

    def _attention_mask(self, columns: torch.Tensor, end: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """(batch, 1, tokens, end) mask: a token attends to the prompt, the answer and the drafts before it."""
        keys = self.columns[:end]
        mask = (keys <= columns[..., None]) & self.visible[:, None, :end]  # (batch, tokens, end)
        text_config = self.config.get_text_config()
        window = text_config.sliding_window if "sliding_attention" in (getattr(text_config, "layer_types", None) or ()) else None
        masks = {"full_attention": mask}
        if window is not None:
            masks["sliding_attention"] = mask & (keys > columns[..., None] - window)
        masks = {name: self._prepared(value[:, None]) for name, value in masks.items()}
        return masks["full_attention"] if window is None else masks

    def _prepared(self, mask: torch.Tensor) -> torch.Tensor:
        """A boolean mask as the attention function takes it."""
        if self.config.get_text_config()._attn_implementation == "sdpa":
            return mask
        dtype = self.model.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    # ------------------------------------------------------------ Tokens

    def _add(self, logits: torch.Tensor, drafts: torch.Tensor, states: torch.Tensor | None) -> None:
        """
        Chooses the token after each token of a pass, accepts drafts, and adds the new tokens to the answers.

        Args:
            logits: (batch, tokens, vocabulary) after the last token of the answer and after each draft.
            drafts: (batch, tokens - 1), -1 for none.
            states: (batch, tokens, registers) of the grammar at each of them.
        """
        answers = self.answers
        count = logits.shape[1]
        steps = self.steps[:count]
        chosen, scores, processed = self._choose(logits, drafts, states)  # (batch, tokens), (batch, tokens, vocabulary) twice
        matches = self._matches(drafts, chosen[:, :-1])  # (batch, drafts)
        if self.settings.coordinate_tolerance and self.num_drafts:  # a draft nearby may be forbidden
            matches = matches * (processed[:, : count - 1].gather(2, drafts.clamp(min=0)[..., None])[..., 0] > float("-inf"))
        accepted = matches.cumprod(1)  # (batch, drafts)
        num_accepted = accepted.sum(1, keepdim=True)  # (batch, 1)
        # Accepted drafts, then the token chosen after the last of them.
        new = torch.where(steps < num_accepted, torch.nn.functional.pad(drafts, (0, 1)), chosen)
        is_end = torch.isin(new, self.ends) & (steps <= num_accepted)
        first_end = torch.where(is_end.any(1, keepdim=True), is_end.int().argmax(1, keepdim=True), count)
        num_new = torch.minimum(num_accepted, first_end) + 1
        num_new = torch.minimum(num_new, self.max_new_tokens - answers.lengths)
        num_new = torch.where(answers.finished, 0, num_new)
        is_new = steps < num_new
        at = answers.lengths + steps
        answers.token_ids.scatter_(1, at, torch.where(is_new, new, self.pad))
        if answers.logprobs is not None:
            logprobs = scores.log_softmax(-1)  # (batch, tokens, vocabulary)
            chosen_logprobs = logprobs.gather(2, new.clamp(min=0)[..., None])[..., 0]
            answers.logprobs.scatter_(1, at, torch.where(is_new, chosen_logprobs, 0))
            if self.vocabulary is not None:
                coordinates = logprobs[..., self.vocabulary.start_token_id : self.vocabulary.end_token_id]
                coordinates = torch.where(is_new[..., None], coordinates, 0)
                answers.coordinate_logits.scatter_(1, at[..., None].expand_as(coordinates), coordinates)
        last = (num_new - 1).clamp(min=0)
        if answers.state is not None and states is not None:
            state = states.gather(1, last[..., None].expand(-1, -1, states.shape[-1]))[:, 0]
            state = self.constraint.grammar.advance(state, new.gather(1, last)[:, 0])
            answers.state.copy_(torch.where(answers.finished, answers.state, state))
        if self.num_drafts:
            self.history.append(torch.where(is_new, new, -1), answers.lengths)
            self._carry(logits, drafts, new, num_new)
        answers.last.copy_(torch.where(answers.finished, answers.last, new.gather(1, last)))
        answers.lengths.add_(num_new)
        ended = first_end < num_new
        answers.finished.logical_or_(ended | (answers.lengths >= self.max_new_tokens))

    def _choose(
        self, logits: torch.Tensor, drafts: torch.Tensor, states: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The token after each token of a pass; the scores that log probabilities are computed of, those before temperature and truncation
        of the distribution; and the scores that the token is chosen by."""
        scores = processed = logits
        for processor in self.processors:
            if processor is self.grammar and states is not None:
                remaining = self.grammar.max_new_tokens - self.answers.lengths - self.steps[: logits.shape[1]]
                forbidden = self.constraint.grammar.mask(states, remaining.clamp(min=1))  # (batch, tokens, vocabulary)
                scores = processed = processed.masked_fill(forbidden, float("-inf"))
            elif type(processor) in POINTWISE_PROCESSORS:
                processed = processor(None, processed.flatten(0, 1)).view_as(processed)
            else:
                processed = self._processed_one_by_one(processor, processed, drafts)
        if self.do_sample:
            # A grammar forbids all tokens behind a draft that breaks it. That draft is not accepted.
            is_forbidden = processed.amax(-1, keepdim=True) == float("-inf")
            probabilities = processed.masked_fill(is_forbidden, 0).softmax(-1)  # (batch, tokens, vocabulary)
            # The first of exponential waiting times with these rates. `torch.multinomial` waits for a check of its input.
            return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1), scores, processed
        return processed.argmax(-1), scores, processed

    def _processed_one_by_one(self, processor, scores: torch.Tensor, drafts: torch.Tensor) -> torch.Tensor:
        """Applies a processor that depends on earlier tokens, for a single prompt."""
        length = int(self.answers.lengths)
        before = torch.cat((self.input_ids.to(self.device), self.answers.token_ids[:, :length], drafts.clamp(min=0)), dim=1)
        start = self.input_ids.shape[1] + length
        return torch.stack([processor(before[:, : start + n], scores[:, n]) for n in range(scores.shape[1])], dim=1)

    def _matches(self, drafts: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """(batch, drafts) whether each draft is the chosen token, or near it."""
        equal = drafts == chosen
        if self.settings.coordinate_tolerance and self.num_drafts:
            axes, bins = self.classes.axes, self.classes.bins
            ids = drafts.clamp(min=0)
            near = (axes[ids] >= 0) & (axes[ids] == axes[chosen]) & (drafts >= 0)
            equal = equal | (near & ((bins[ids] - bins[chosen]).abs() <= self.settings.coordinate_tolerance))
        return equal.long()

    def _carry(self, logits: torch.Tensor, drafts: torch.Tensor, new: torch.Tensor, num_new: torch.Tensor) -> None:
        """Keeps what this pass predicts behind the new tokens: after each draft that was not accepted, the best bin of each axis. Nothing
        where the first of them was not even of the class of the token in its place."""
        answers, count = self.answers, logits.shape[1]
        bins = torch.stack([logits[..., ids.start : ids.stop].argmax(-1) for ids in map(self.vocabulary.token_ids, AXES)], dim=-1)
        # The last new token was chosen after token `num_new - 1` of the pass; token `num_new` stood at its place.
        source = num_new + self.steps[: self.num_drafts]  # (batch, drafts)
        valid = (source < count).sum(1, keepdim=True)
        source = source.clamp(max=count - 1)
        answers.carried.copy_(bins.gather(1, source[..., None].expand(-1, -1, 3)))
        if count == 1:
            return
        last = (num_new - 1).clamp(min=0)
        drafted = drafts.gather(1, last.clamp(max=count - 2))
        class_ids = self.classes.class_ids
        is_near = (drafted >= 0) & (class_ids[drafted.clamp(min=0)] == class_ids[new.gather(1, last)])
        answers.num_carried.copy_(torch.where(is_near, valid, 0))

    # ------------------------------------------------------------ Output

    def _output(self, prefilled: Cache):
        """Token ids, or the output with scores and cache, as `generate` returns them."""
        answers = self.answers
        length = int(answers.lengths.max())
        token_ids = answers.token_ids[:, :length].to(self.input_ids.device)
        sequences = torch.cat((self.input_ids, token_ids), dim=1)  # (batch, prompt + new tokens)
        if self.streamer is not None:
            self.streamer.end()
        if self.returns_cache:
            self.cache.copy_to(prefilled, self.prompt_length + length - 1)
        if not self.generation_config.return_dict_in_generate:
            return sequences
        return LlavaSTGenerateOutput(
            sequences=sequences,
            token_logprobs=None if answers.logprobs is None else answers.logprobs[:, :length],
            coordinate_logits=None if answers.coordinate_logits is None else answers.coordinate_logits[:, :length],
            **{CACHE_NAME: prefilled},
        )
