"""Training's own forward pass and optimizer: the same numbers as transformers' and torch's."""

import random

import pytest
import torch
from transformers import AutoProcessor, IdeficsForVisionText2Text

from idefics_chat.default_model import checkpoint_path, optimizers, text_forward
from idefics_chat.default_model.architecture import LATENTS
from idefics_chat.default_model.attention_guides import GUIDED_LAYER
from idefics_chat.default_model.batches import Encoder, collate
from idefics_chat.default_model.dialogues import sample_dialogue
from idefics_chat.default_model.scenes import sample_scene


def test_states_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_forward, "HALF", torch.float32)
    model = IdeficsForVisionText2Text.from_pretrained(checkpoint_path(), dtype=torch.float32)
    model.set_attn_implementation("eager")  # which alone tells its attention
    encoder, rng = Encoder(AutoProcessor.from_pretrained(checkpoint_path()).tokenizer), random.Random(3)
    documents = [sample_dialogue(rng, lambda: sample_scene(rng), images) for images in (0, 1, 3)]
    batch = collate([encoder.document(document, [0] * len(document.scenes)) for document in documents])
    latents = torch.randn(*batch.scenes.shape, LATENTS, model.config.vision_config.embed_dim)
    with torch.no_grad():
        ours = text_forward.text_states(model, batch.ids, batch.seen.bool(), latents, (3, GUIDED_LAYER))
        theirs = model.model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            perceiver_embeddings=latents,
            image_attention_mask=batch.seen,
            output_hidden_states=True,
            output_attentions=True,
        )
    real = batch.mask.bool()
    torch.testing.assert_close(ours.last[real], theirs.last_hidden_state[real], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.after[3][real], theirs.hidden_states[4][real], rtol=1e-3, atol=1e-3)
    ours_shares = ours.scores[GUIDED_LAYER].softmax(-1).transpose(1, 2)[real]
    torch.testing.assert_close(ours_shares, theirs.attentions[GUIDED_LAYER].transpose(1, 2)[real], rtol=1e-3, atol=1e-3)


def test_muon_steps_as_torch_does() -> None:
    torch.manual_seed(1)
    shapes = [(64, 32), (32, 64), (64, 32)]
    mine = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    torchs = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    steppers = [
        optimizers.Muon(mine, lr=0.02),
        torch.optim.Muon(torchs, lr=0.02, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        for one, other in zip(mine, torchs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for stepper in steppers:
            stepper.step()
    for one, other in zip(mine, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3)
