"""Each bug can still be planted and names its tests; `make mutants` shows that they detect it."""

from collections import Counter

import pytest

from tests.mutants.mutants import MUTANTS
from tests.mutants.plant import ROOT, Copy, planted


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.guarantee} {mutant.name}")
def test_each_mutant_can_be_planted_and_its_test_files_exist(mutant):
    text = (ROOT / "push_to_poll_client" / mutant.file).read_text()
    compile(planted(mutant, text), mutant.file, "exec")
    assert all((ROOT / test).is_file() for test in mutant.tests if test.startswith("tests/"))


def test_each_guarantee_has_at_least_two_mutants():
    count = Counter(mutant.guarantee for mutant in MUTANTS)
    assert count.keys() == {f"G{number}" for number in range(1, 14)}
    assert min(count.values()) >= 2


def test_a_planted_mutant_fails_its_tests_and_is_removed_again(tmp_path):
    copy = Copy(tmp_path)
    mutant = next(one for one in MUTANTS if one.name == "takes a failed poll for an answer")
    assert copy.see(mutant)
    assert copy.passes(mutant.tests)


def test_a_mutant_whose_text_is_not_in_the_file_is_an_error():
    with pytest.raises(SystemExit, match="has 0 times, not once, what G1"):
        planted(MUTANTS[0], "")
