import pytest

from dev.releases import unpacked_release
from nameko_reliable.testing.servers import CannotStart


def test_a_release_missing_from_the_clone_is_reported_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(CannotStart) as refusal:
        unpacked_release("v0.0.0", tmp_path)

    assert str(refusal.value) == (
        "This clone has no v0.0.0: fetch it with `git fetch --tags origin`, or choose another commit, FROM=…."
    )
