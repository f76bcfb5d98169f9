"""Probabilities of exported files and back; what is no probability is seen."""

from __future__ import annotations

import torch

from mnft.tasks import load_activation


def test_logits_come_back() -> None:
    activation = load_activation("multilabel")
    logits = torch.tensor([[-80.0, -12, -1, 0, 3, 12]])
    torch.testing.assert_close(
        activation.invert(activation.apply(logits)), logits, atol=0.01, rtol=0
    )


def test_rounded_probabilities_have_finite_logits_and_keep_their_order() -> None:
    found = load_activation("multilabel").invert(torch.tensor([0.0, 0.5, 1 - 2**-23, 1.0, 1.0001]))
    assert found.isfinite().all()
    assert (found.diff() >= 0).all()
    assert found[4] == found[3] > found[2]


def test_the_output_of_a_file_without_its_sigmoid_is_not_finite() -> None:
    found = load_activation("multilabel").invert(torch.tensor([-3.0, 0.7, 5.0]))
    assert found.isnan().tolist() == [True, False, True]
