"""Options that do not suit the chosen model are refused, not ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from onestep_sr.sr_models.errors import UserError
from onestep_sr.sr_models.families.bundled import BUNDLED
from onestep_sr.sr_models.families.loading import recipe_of
from onestep_sr.sr_models.jobs.model_choice import ModelChoice, open_model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "a cat"}, "take --prompt: give --base and --lora"),
        ({"prompt": ""}, "take --prompt"),
        ({"embeddings": Path("folder"), "offload": True}, "take --embeddings and --offload"),
        ({"recipe": "tad-sr"}, "leave 'tad-sr' out"),
        ({"base": Path("base")}, "needs both --base"),
        ({"lora": Path("lora")}, "needs both --base"),
        ({"base": Path("absent"), "lora": Path("lora")}, "absent does not exist"),
    ],
)
def test_options_that_do_not_suit_the_model_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_model(ModelChoice(device="cpu", **options))


def test_the_bundled_model_needs_no_option() -> None:
    assert open_model(ModelChoice(device="cpu")).family.name == "conv-sr"


def test_the_nodes_recipe_stays_without_influence_on_the_bundled_model() -> None:
    """Saved graphs may hold any recipe beside 'bundled', as its tooltip allows."""
    assert recipe_of(BUNDLED, "sinsr") == recipe_of(BUNDLED)
