"""A few kills; `make torture` makes a thousand."""

from pathlib import Path

import pytest

from tests.end_to_end.conftest import picture
from tests.torture.forked_server import Zygote
from tests.torture.harness import torture


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    with Zygote() as zygote:
        tally = torture(tmp_path, picture((220, 30, 30), "circle"), kills=6, seed=1, zygote=zygote)
    assert (tally.kills, tally.cold) == (6, 1)
    assert tally.acknowledged > 6
    assert tally.resumed > 0
