"""The help names what there is."""

from __future__ import annotations

from omegaconf import OmegaConf

from hypimg import config, help


def test_every_scalar_at_the_top_of_the_config_is_in_the_help() -> None:
    top = OmegaConf.to_container(OmegaConf.load(config.CONFIG_DIR / "train.yaml"), resolve=False)
    assert isinstance(top, dict)
    scalars = {key for key, value in top.items() if not isinstance(value, dict | list)}
    of_experiments = {"name", "show", "caption"}  # what an experiment sets, not who runs it
    listed = {line.split()[0] for line in help.text().splitlines() if line.startswith("  ")}
    assert scalars - of_experiments <= listed
