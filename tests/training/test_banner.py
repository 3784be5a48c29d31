"""What a run tells at its end."""

import pytest

from lstmlm.config import Config, DataConfig, TrainConfig
from lstmlm.training.banner import _proof


@pytest.mark.parametrize(("ppl", "shown"), [(1.764, "1.764 is less: the state is carried"), (2.5, "2.500 is not less")])
def test_the_toy_language_shows_whether_the_state_is_carried(ppl: float, shown: str) -> None:
    line = _proof(Config(data=DataConfig(dataset="toy")), ppl)["proof"]
    assert "a test ppl of 2.142 or more; the best possible is 1.511" in line  # as README has them
    assert shown in line


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(data=DataConfig(dataset="toy", level="char")),
        Config(data=DataConfig(dataset="toy", min_count=2)),
        Config(
            data=DataConfig(dataset="toy"), train=TrainConfig(init_from="runs/a")
        ),  # whose vocabulary may know no toy word
    ],
)
def test_other_tokens_show_nothing(config: Config) -> None:
    assert _proof(config, 1.0) == {}
