"""The known models: complete, and each text encoder where the worker looks for it."""

from __future__ import annotations

import pytest

from ltxq.errors import UnknownModel
from ltxq.settings import DEFAULT_MODEL
from ltxq_worker.models.catalog import CATALOG, SHARED_TEXT_ENCODER, known_model


def test_default_model_can_be_downloaded() -> None:
    assert known_model(DEFAULT_MODEL).name == DEFAULT_MODEL


def test_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(UnknownModel, match=", ".join(CATALOG)):
        known_model("wan-2")


@pytest.mark.parametrize("name", CATALOG)
def test_each_model_has_its_folder_and_the_shared_text_encoder(name: str) -> None:
    model = CATALOG[name]
    assert list(model.parts) == [name, SHARED_TEXT_ENCODER]
    assert model.size == model.weights.size + model.text_encoder.size
    assert len(model.weights.files) == 2  # the checkpoint and the upscaler
    assert model.weights.page == f"https://huggingface.co/{model.weights.id}"
