"""The architecture page shows the imports of the package as they are."""

import re

from tests.docs.architecture import PAGE, PICTURE, edges, imports, layers, picture
from tests.docs.test_pages import PACKAGE


def test_the_picture_of_the_architecture_is_up_to_date():
    assert PICTURE.findall(PAGE.read_text()) == [picture()], "run python -m tests.docs.architecture"


def test_each_arrow_of_the_picture_leads_to_a_lower_layer_that_is_imported():
    found = edges()
    assert found
    for upper, lower in found:
        assert upper > lower
        above, below = layers()[upper][0], layers()[lower][0]
        assert set().union(*map(imports, above)) & set(below)


def test_each_module_named_on_the_architecture_page_exists():
    names = re.findall(r"`(_\w+|\w+/)(?:\.py)?`", PICTURE.sub("", PAGE.read_text()))
    assert len(set(names)) > 10
    for name in names:
        assert PACKAGE.joinpath(name).is_dir() or PACKAGE.joinpath(f"{name}.py").exists(), name
