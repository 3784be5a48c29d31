"""What a run tells at its end."""

import pytest

from lstmlm.config import DataConfig
from lstmlm.training.banner import _proof


@pytest.mark.parametrize(("ppl", "shown"), [(1.764, "1.764 is less: the state is carried"), (2.5, "2.500 is not less")])
def test_the_toy_language_shows_whether_the_state_is_carried(ppl: float, shown: str) -> None:
    line = _proof(DataConfig(dataset="toy"), ppl)["proof"]
    assert "a test ppl of 2.142 or more; the best possible is 1.511" in line  # as README has them
    assert shown in line


@pytest.mark.parametrize(
    "data", [DataConfig(), DataConfig(dataset="toy", level="char"), DataConfig(dataset="toy", min_count=2)]
)
def test_other_tokens_show_nothing(data: DataConfig) -> None:
    assert _proof(data, 1.0) == {}
