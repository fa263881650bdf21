import pytest

from extensions.production import refuse_unfit


def unfit(config, environment):
    """What a bakery must not open with."""
    if "flour" not in config:
        yield "flour must be there."
    for name in environment:
        yield f"{name} must not."


def test_in_production_all_that_stands_against_it_is_said_at_once():
    with pytest.raises(SystemExit) as refusal:
        refuse_unfit(unfit, {"ENVIRONMENT": "production"}, {"SMOKE": "1", "MICE": "3"})

    assert str(refusal.value).splitlines() == [
        *("ENVIRONMENT is production, but:", "- flour must be there.", "- SMOKE must not.", "- MICE must not.")
    ]


def test_what_is_fit_for_production_is_taken():
    refuse_unfit(unfit, {"ENVIRONMENT": "production", "flour": "rye"}, {})


@pytest.mark.parametrize("config", [{}, {"ENVIRONMENT": ""}, {"ENVIRONMENT": "development"}])
def test_elsewhere_anything_is_fine(config):
    refuse_unfit(unfit, config, {"SMOKE": "1"})


def test_an_environment_of_another_name_is_a_sentence():
    with pytest.raises(SystemExit, match="ENVIRONMENT must be development or production, not 'staging'"):
        refuse_unfit(unfit, {"ENVIRONMENT": "staging"}, {})
