# SPDX-License-Identifier: Apache-2.0
"""The loss equals cross-entropy with dense two-hot targets over the full vocabulary, with bounded memory."""

import pytest
import torch

from llava_st_hf.model import loss_llava_st
from llava_st_hf.model.coordinates_llava_st import CoordinateVocabulary
from llava_st_hf.model.loss_llava_st import supervised_cross_entropy
from modeling_tests.factories import NAN, image_tokens, mixed_batch, tiny_model, video_tokens, watch_new_tensors


BATCH, LENGTH, HIDDEN, BASE, AFTER = 3, 11, 16, 40, 5  # five ordinary tokens follow the coordinates: a resized vocabulary
VOCABULARY = CoordinateVocabulary(BASE, 7, 5, tuple(range(BASE - 6, BASE)))
SIZE = BASE + len(VOCABULARY) + AFTER


def loss_of(hidden, weight, *args, **kwargs):
    """Loss and token losses of a linear head with `weight` (vocabulary, hidden), a tensor that is not a parameter."""
    head = torch.nn.Linear(HIDDEN, SIZE, bias=False)
    del head.weight
    head.weight = weight
    return supervised_cross_entropy(hidden, head, SIZE, *args, **kwargs)[:2]


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, SIZE, (BATCH, LENGTH), generator=generator)
    targets[:, ::2] = torch.randint(BASE - 6, BASE + len(VOCABULARY), (BATCH, (LENGTH + 1) // 2), generator=generator)
    positions = torch.rand(BATCH, LENGTH, generator=generator).masked_fill(targets < BASE - 6, NAN)
    positions[0, 0] = NAN  # a coordinate token without position: its own bin
    positions[1, :4] = torch.tensor([0.0, 1.0, 0.5, 1 / 6])
    targets[:, 5] = -100
    hidden = torch.randn(BATCH, LENGTH, HIDDEN, generator=generator)
    weight = torch.randn(SIZE, HIDDEN, generator=generator)
    return hidden, weight, targets, positions


def dense_target(token: int, position: float) -> torch.Tensor:
    """Target distribution (vocabulary,) by definition: two-hot between the neighbouring bins of the axis."""
    target, start = torch.zeros(SIZE), BASE
    for axis, size in enumerate(VOCABULARY.sizes()):
        placeholders = VOCABULARY.placeholder_token_ids[2 * axis : 2 * axis + 2]
        if position == position and (start <= token < start + size or token in placeholders):
            scaled = torch.tensor(position) * (size - 1)
            share = scaled - scaled.floor()
            target[start + int(scaled.floor())] += 1 - share
            target[start + int(scaled.ceil())] += share
            return target
        start += size
    target[token] = 1
    return target


def neighbour_matrix() -> torch.Tensor:
    matrix, start = torch.zeros(SIZE, SIZE), BASE
    for size in VOCABULARY.sizes():
        for i in range(size):
            for j in range(size):
                matrix[start + i, start + j] = 0.5 ** abs(i - j)
        start += size
    return matrix


def dense_loss(hidden, weight, targets, positions, propagate):
    if propagate:
        mixed = neighbour_matrix() @ weight
        weight_out = weight + mixed - mixed.detach()
    else:
        weight_out = weight
    # The hidden states are multiplied with the unchanged embeddings: the value of w + Mw - stopgrad(Mw) is w.
    losses = []
    for row, column in (targets != -100).nonzero().tolist():
        log_probabilities = (hidden[row, column] @ weight_out.T).log_softmax(-1)
        losses.append(-(dense_target(int(targets[row, column]), float(positions[row, column])) * log_probabilities).sum())
    return torch.stack(losses)


@pytest.mark.parametrize("propagate", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_loss_and_gradients_equal_those_of_dense_two_hot_targets(problem, monkeypatch, propagate, chunk):
    monkeypatch.setattr(loss_llava_st, "_MAX_CHUNK_LOGITS", chunk * SIZE)
    hidden, weight, targets, positions = problem
    results = []
    for dense in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if dense:
            losses = dense_loss(h, w, targets, positions, propagate)
            (0.3 * losses.sum()).backward()
        else:
            total, losses = loss_of(h, w, targets, positions, VOCABULARY, propagate)
            assert total.item() == pytest.approx(losses.sum().item(), rel=1e-6)
            (0.3 * total).backward()
        results.append((losses.detach(), h.grad, w.grad))
    for dense, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, dense, atol=1e-5, rtol=1e-5)


def test_loss_without_positions_equals_cross_entropy(problem):
    hidden, weight, targets, _ = problem
    total, losses = loss_of(hidden, weight, targets, None, None, propagate=False)
    wanted = torch.nn.functional.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(losses, wanted[targets.flatten() != -100])
    assert total.item() == pytest.approx(wanted.sum().item(), rel=1e-6)


def test_loss_position_exactly_at_a_bin_equals_the_token_of_that_bin(problem):
    hidden, weight, *_ = problem
    targets = torch.full((BATCH, LENGTH), BASE)
    on_bin = loss_of(hidden, weight, targets, torch.full((BATCH, LENGTH), 0.5), VOCABULARY, False)[0]
    plain = loss_of(hidden, weight, targets + 3, None, VOCABULARY, False)[0]  # bin 3 of 0…6
    torch.testing.assert_close(on_bin, plain)


@pytest.mark.parametrize("trained", ["hidden", "weight"])
def test_loss_computes_only_the_gradients_that_are_required(problem, trained):
    hidden, weight, targets, positions = problem
    gradients = []
    for dense in (True, False):
        h, w = hidden.clone().requires_grad_(trained == "hidden"), weight.clone().requires_grad_(trained == "weight")
        with watch_new_tensors() as made:
            losses = dense_loss(h, w, targets, positions, True) if dense else loss_of(h, w, targets, positions, VOCABULARY, True)[0]
        losses.sum().backward()
        gradients.append(h.grad if trained == "hidden" else w.grad)
        assert (w.grad if trained == "hidden" else h.grad) is None
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)
    # `made` is from the loss under test: it allocates only the gradient that is needed.
    supervised = int((targets != -100).sum())
    assert (("zeros_like", (SIZE, HIDDEN)) in made) == (trained == "weight")
    assert (("empty_like", (supervised, HIDDEN)) in made) == (trained == "hidden")


@pytest.mark.parametrize("trains", [False, True])
def test_loss_under_autocast_has_bfloat16_logits_and_float32_losses_and_gradients(problem, monkeypatch, trains):
    monkeypatch.setattr(loss_llava_st, "_MAX_CHUNK_LOGITS", 4 * SIZE)
    hidden, weight, targets, positions = problem
    supervised = targets != -100
    logits = torch.nn.functional.linear(hidden[supervised].bfloat16(), weight.bfloat16()).float()
    pairs = zip(targets[supervised].tolist(), positions[supervised].tolist(), strict=True)
    wanted = -(torch.stack([dense_target(*pair) for pair in pairs]) * logits.log_softmax(-1)).sum(-1)
    h, w = hidden.clone().requires_grad_(trains), weight.clone().requires_grad_(trains)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, losses = loss_of(h, w, targets, positions, VOCABULARY, True)
    torch.testing.assert_close(losses, wanted)
    if trains:
        total.backward()
        dense_h, dense_w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        dense_loss(dense_h, dense_w, targets, positions, True).sum().backward()
        for ours, dense in ((h.grad, dense_h.grad), (w.grad, dense_w.grad)):
            assert ours.dtype == torch.float32 and (ours - dense).norm() < 0.02 * dense.norm()


def test_loss_bfloat16_weights_give_float32_losses_and_bfloat16_gradients(problem):
    hidden, weight, targets, positions = problem
    h, w = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    total, losses = loss_of(h, w, targets, positions, VOCABULARY, True)
    total.backward()
    assert losses.dtype == total.dtype == torch.float32 and h.grad.dtype == w.grad.dtype == torch.bfloat16
    torch.testing.assert_close(losses, dense_loss(hidden, weight, targets, positions, True), atol=0.2, rtol=0.02)


@pytest.mark.parametrize("chunk_logits", [1, SIZE, 3 * SIZE])
def test_loss_without_gradients_is_equal_for_every_chunk_size(problem, monkeypatch, chunk_logits):
    monkeypatch.setattr(loss_llava_st, "_MAX_CHUNK_LOGITS", chunk_logits)
    hidden, weight, targets, positions = problem
    with watch_new_tensors() as made:
        losses = loss_of(hidden, weight, targets, positions, VOCABULARY, True)[1]
    torch.testing.assert_close(losses, dense_loss(hidden, weight, targets, positions, True), atol=1e-5, rtol=1e-5)
    logits = [torch.Size(shape).numel() for _, shape in made if SIZE in shape and HIDDEN not in shape]
    assert max(logits) == max(chunk_logits, SIZE)  # one position at least


@pytest.mark.parametrize("trains", [False, True])
def test_loss_logits_are_not_larger_than_the_chunk(problem, monkeypatch, trains):
    chunk = 4
    monkeypatch.setattr(loss_llava_st, "_MAX_CHUNK_LOGITS", chunk * SIZE)
    hidden, weight, targets, positions = problem
    hidden, weight = hidden.clone().requires_grad_(trains), weight.clone().requires_grad_(trains)
    with watch_new_tensors() as made:
        total, _ = loss_of(hidden, weight, targets, positions, VOCABULARY, propagate=False)
        if trains:
            total.backward()
    sizes = [torch.Size(shape).numel() for _, shape in made if SIZE in shape and HIDDEN not in shape]
    assert sizes and max(sizes) <= chunk * SIZE  # no (positions, vocabulary) tensor, not even in the backward pass


def test_loss_backward_twice_with_retain_graph_gives_equal_gradients(problem):
    hidden, weight, targets, positions = problem
    weight = weight.clone().requires_grad_()
    total, _ = loss_of(hidden, weight, targets, positions, VOCABULARY, True)
    first = torch.autograd.grad(total, weight, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(total, weight)[0])


def media_token_ids(config) -> torch.Tensor:
    return torch.tensor([*set(image_tokens(config)), *set(video_tokens(config))])


def test_model_loss_is_the_mean_over_supervised_tokens_or_the_sum_over_num_items_in_batch():
    model = tiny_model()
    batch = mixed_batch(model.config)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        mean = model(**batch, labels=labels)
        divided = model(**batch, labels=labels, num_items_in_batch=torch.tensor(7))
    learned = (labels != -100) & ~torch.isin(labels, media_token_ids(model.config))
    assert mean.token_losses.numel() == int(learned[:, 1:].sum())
    assert mean.loss.item() == pytest.approx(mean.token_losses.mean().item(), rel=1e-6)
    assert divided.loss.item() == pytest.approx(mean.token_losses.sum().item() / 7, rel=1e-6)


def test_model_loss_equals_cross_entropy_of_its_logits():
    model = tiny_model()
    batch = mixed_batch(model.config)
    batch["coordinate_values"][:] = NAN
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        outputs = model(**batch, labels=labels)
    labels = labels.masked_fill(torch.isin(labels, media_token_ids(model.config)), -100)  # features replace these tokens
    wanted = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(outputs.loss, wanted)


def test_model_shift_labels_replace_labels():
    model = tiny_model()
    batch = mixed_batch(model.config)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    positions = torch.nn.functional.pad(batch["coordinate_values"], (0, 1), value=NAN)[:, 1:]
    with torch.no_grad():
        wanted = model(**batch, labels=labels).loss
        ours = model(**batch, labels=torch.zeros_like(labels), shift_labels=shifted, shift_coordinate_values=positions).loss
        at_bins = model(**batch, shift_labels=shifted).loss
    torch.testing.assert_close(ours, wanted)
    assert not torch.isclose(at_bins, wanted, atol=1e-4)


def test_model_batch_without_supervised_tokens_has_zero_loss_and_gradients():
    model = tiny_model().train()
    batch = mixed_batch(model.config)
    loss = model(**batch, labels=torch.full_like(batch["input_ids"], -100)).loss
    loss.backward()
    assert loss.item() == 0 and not model.lm_head.weight.grad.any()


def test_model_logits_are_none_only_in_training_with_labels():
    model = tiny_model()
    batch = mixed_batch(model.config)
    assert model(**batch, labels=batch["input_ids"]).logits is not None
    model.train()
    assert model(**batch, labels=batch["input_ids"]).logits is None
    assert model(**batch, labels=batch["input_ids"], skip_logits=False).logits is not None
    assert model(**batch).logits is not None


def test_model_batch_without_supervised_tokens_and_num_items_0_has_finite_gradients():
    model = tiny_model().train()
    input_ids = torch.arange(6)[None]
    model(input_ids=input_ids, labels=torch.full_like(input_ids, -100), num_items_in_batch=torch.tensor(0)).loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("target_modules", [["lm_head"], ["q_proj", "lm_head"]])
def test_model_loss_with_lora_on_the_head_equals_that_of_its_logits(target_modules):
    peft = pytest.importorskip("peft")
    model = tiny_model()
    config = model.config
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=target_modules, init_lora_weights=False)).eval()
    coordinate = config.coordinates.start_token_id
    input_ids = torch.tensor([[1, 2, 3, coordinate, coordinate + 1, 5]])
    coordinates = torch.full(input_ids.shape, NAN)
    coordinates[0, 3] = 0.3
    output = wrapped(input_ids=input_ids, coordinate_values=coordinates, labels=input_ids)
    lower, upper, share = config.coordinates.between_tokens(input_ids[0, 1:], coordinates[0, 1:])
    log_probabilities = output.logits[0, :-1].log_softmax(-1)
    rows = torch.arange(5)
    expected = -((1 - share) * log_probabilities[rows, lower] + share * log_probabilities[rows, upper]).mean()
    torch.testing.assert_close(output.loss, expected)
    wrapped.train()(input_ids=input_ids, coordinate_values=coordinates, labels=input_ids).loss.backward()
    gradients = {name: p.grad for name, p in wrapped.named_parameters() if "lm_head" in name and "lora" in name}
    assert len(gradients) == 2 and all(g is not None and g.abs().sum() > 0 for g in gradients.values())


def test_model_loss_and_gradients_with_a_wrapped_head_equal_those_of_a_linear_head():
    class Wrapped(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear = linear
            self.weight = linear.weight

        def forward(self, states):
            return self.linear(states)

    results = []
    for wrap in (False, True):
        model = tiny_model().train()
        if wrap:
            model.lm_head = Wrapped(model.lm_head)
        start = model.config.coordinates.start_token_id
        input_ids = torch.tensor([[1, 2, start, start + 7, start + 12, 4]])
        coordinates = torch.tensor([[NAN, NAN, 0.13, 0.4, 0.77, NAN]])
        output = model(input_ids=input_ids, coordinate_values=coordinates, labels=input_ids)
        output.loss.backward()
        results.append((output.loss, model.lm_head.weight.grad, model.get_input_embeddings().weight.grad, output.token_losses))
    for plain, wrapped in zip(*results, strict=True):
        torch.testing.assert_close(plain, wrapped)


class WrappedHead(torch.nn.Module):
    """Output head that is not an `nn.Linear`, as adapters and quantizers create."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = torch.nn.Parameter(weight.clone())

    def forward(self, states):
        return states @ self.weight.T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_wrapped_head_with_tokens_after_the_coordinates_has_equal_gradients(problem, dtype):
    hidden, weight, targets, positions = (tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in problem)
    plain = weight.clone().requires_grad_()
    loss_of(hidden, plain, targets, positions.float(), VOCABULARY, True)[0].backward()
    head = WrappedHead(weight)
    supervised_cross_entropy(hidden, head, SIZE, targets, positions.float(), VOCABULARY, True)[0].backward()
    assert (head.weight.grad - plain.grad).norm() < (1e-5 if dtype == torch.float32 else 0.02) * plain.grad.norm()


class QuantizedHead(torch.nn.Linear):
    """Linear layer whose stored weight is integer or offloaded (no data); `forward` uses the actual values."""

    def __init__(self, values: torch.Tensor, stored: torch.Tensor):
        super().__init__(*reversed(values.shape), bias=False)
        self.values, self.weight = values, torch.nn.Parameter(stored, requires_grad=False)

    def forward(self, states):
        return states @ self.values.T


@pytest.mark.parametrize("stored", [torch.zeros(SIZE, HIDDEN, dtype=torch.int8), torch.zeros(SIZE, HIDDEN, device="meta")])
def test_loss_linear_head_with_integer_or_offloaded_weight_uses_its_forward(problem, stored):
    hidden, weight, targets, positions = problem
    _, losses, bin_errors = supervised_cross_entropy(hidden, QuantizedHead(weight, stored), SIZE, targets, positions, VOCABULARY, True)
    torch.testing.assert_close(losses, dense_loss(hidden, weight, targets, positions, False), atol=1e-5, rtol=1e-5)
    assert bin_errors is None


def test_loss_wrapped_head_without_coordinates_equals_cross_entropy(problem):
    hidden, weight, targets, _ = problem
    head = WrappedHead(weight)
    total, losses, bin_errors = supervised_cross_entropy(hidden, head, SIZE, targets, None, None, False)
    total.backward()
    plain = weight.clone().requires_grad_()
    wanted = torch.nn.functional.cross_entropy((hidden @ plain.T).flatten(0, 1), targets.flatten(), reduction="none")
    wanted.sum().backward()
    torch.testing.assert_close(losses, wanted[targets.flatten() != -100].detach())
    torch.testing.assert_close(head.weight.grad, plain.grad, atol=1e-5, rtol=1e-5)
    assert bin_errors is None


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("trains", [False, True])
def test_loss_wrapped_head_is_called_with_one_chunk_at_a_time(problem, monkeypatch, trains, chunk):
    """Includes the backward pass, which calls the head again."""
    monkeypatch.setattr(loss_llava_st, "_MAX_CHUNK_LOGITS", chunk * SIZE)
    hidden, weight, targets, positions = problem
    sizes = []

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(weight.clone(), requires_grad=trains)

        def forward(self, states):
            sizes.append(len(states))
            return states @ self.weight.T

    supervised = int((targets != -100).sum())
    whole = [chunk] * (supervised // chunk) + ([supervised % chunk] if supervised % chunk else [])
    with watch_new_tensors() as made:
        total, _, _ = supervised_cross_entropy(hidden.clone().requires_grad_(trains), Wrapped(), SIZE, targets, positions, VOCABULARY, True)
        assert sizes == whole
        if trains:
            total.backward()
    assert sorted(sizes) == sorted(whole * 2 if trains else whole)
    logits = [torch.Size(shape).numel() for _, shape in made if SIZE in shape and HIDDEN not in shape]
    assert logits and max(logits) <= chunk * SIZE


def test_loss_bin_errors_are_distances_of_the_most_likely_bin_from_the_exact_target(problem):
    hidden, weight, targets, positions = problem
    head = torch.nn.Linear(HIDDEN, SIZE, bias=False)
    head.weight.data = weight
    _, _, errors = supervised_cross_entropy(hidden, head, SIZE, targets, positions, VOCABULARY, False)
    expected = []
    for row, column in (targets != -100).nonzero().tolist():
        token, position = int(targets[row, column]), float(positions[row, column])
        goal = dense_target(token, position)
        rows = goal.nonzero().flatten()
        axis = [ids for ids in map(VOCABULARY.token_ids, ("temporal", "height", "width")) if int(rows[0]) in ids]
        if not axis:
            expected.append(NAN)
            continue
        [ids] = axis
        logits = (weight @ hidden[row, column])[ids.start : ids.stop]
        place = float((goal * torch.arange(SIZE)).sum()) - ids.start  # two neighbours, so the mean is the exact target
        expected.append(abs(int(logits.argmax()) - place))
    torch.testing.assert_close(errors, torch.tensor(expected), equal_nan=True, atol=1e-4, rtol=0)
    assert 0 < int(errors.isnan().sum()) < len(errors)


def test_loss_head_with_computed_weight_has_equal_gradients(problem):
    hidden, weight, targets, positions = problem
    head = torch.nn.Linear(HIDDEN, SIZE, bias=False)
    head.weight.data = weight.clone()
    plain, _, errors = supervised_cross_entropy(hidden, head, SIZE, targets, positions, VOCABULARY, True)
    plain.backward()
    rows = weight[BASE : BASE + 3].clone().requires_grad_()

    class Computed(torch.nn.Module):  # some embeddings trained, the others frozen, as with trainable tokens of PEFT
        weight = property(lambda self: weight.index_copy(0, torch.arange(BASE, BASE + 3), rows))

        def forward(self, states):
            raise AssertionError("the loss needs no call of the head")

    loss, _, same_errors = supervised_cross_entropy(hidden, Computed(), SIZE, targets, positions, VOCABULARY, True)
    loss.backward()
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(rows.grad, head.weight.grad[BASE : BASE + 3])
    torch.testing.assert_close(errors, same_errors, equal_nan=True)
