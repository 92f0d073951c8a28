"""The optimizer against torch's, and its state as named tensors."""

from __future__ import annotations

import copy

import torch

from multistill.training.optimizer import NamedAdamW


def test_steps_equal_those_of_torch_adamw_and_the_state_can_be_restored():
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    reference_model = copy.deepcopy(model)
    optimizer = NamedAdamW(model.named_parameters(), weight_decay=0.1)
    reference = torch.optim.AdamW(reference_model.parameters(), lr=0.02, weight_decay=0.1)
    for _ in range(5):
        x = torch.randn(4, 5)
        for each in (model, reference_model):
            each.zero_grad()
            each(x).square().mean().backward()
        optimizer.step(0.02)
        reference.step()
    torch.testing.assert_close(model.weight, reference_model.weight)
    torch.testing.assert_close(model.bias, reference_model.bias)

    state = optimizer.state_dict()
    loaded = NamedAdamW(model.named_parameters(), weight_decay=0.1)
    loaded.load_state_dict(state)
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in state.items())

    model.zero_grad()
    restored = copy.deepcopy(model)
    restored_optimizer = NamedAdamW(restored.named_parameters(), weight_decay=0.1)
    restored_optimizer.load_state_dict(state)
    for each, each_optimizer in ((model, optimizer), (restored, restored_optimizer)):
        each(torch.ones(2, 5)).sum().backward()
        each_optimizer.step(0.01)
    assert torch.equal(model.weight, restored.weight)
