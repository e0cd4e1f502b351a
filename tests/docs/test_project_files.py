"""The files for contributors agree with the Makefile and with the environment that it makes."""

import configparser
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_contributing_lists_each_target_of_the_makefile():
    (targets,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    listed = re.findall(r"^\| `make (\w+)` \|", CONTRIBUTING, re.MULTILINE)
    assert sorted([*listed, "servers"]) == sorted(targets.split())


def test_each_command_in_contributing_names_a_file_or_module_that_exists():
    named = re.findall(r"\.venv/bin/python -m (?:pytest (\S+)|(\S+))", CONTRIBUTING)
    assert len(named) >= 3
    for file, module in named:
        assert (ROOT / (file or module.replace(".", "/") + ".py")).exists()


def test_each_hook_of_pre_commit_runs_a_linter_of_the_environment_on_files_that_exist():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert hooks
    for hook in hooks:
        program, *arguments = hook["entry"].split()
        assert program.startswith(".venv/bin/")
        assert (Path(sys.executable).parent / Path(program).name).exists()
        assert all((ROOT / argument).exists() for argument in arguments if argument.endswith(".py"))


@pytest.mark.parametrize(
    "template", [*(ROOT / ".github" / "ISSUE_TEMPLATE").glob("[bf]*.yml")], ids=lambda p: p.name
)
def test_each_issue_template_is_a_form_with_unique_fields(template):
    form = yaml.safe_load(template.read_text())
    assert form.keys() >= {"name", "description", "body"}
    fields = [field["id"] for field in form["body"]]
    assert fields
    assert len(fields) == len(set(fields))
    assert all(field["attributes"]["label"] for field in form["body"])


def test_the_editors_line_lengths_are_those_of_the_linter():
    config = configparser.ConfigParser()
    config.read_string("[top]\n" + (ROOT / ".editorconfig").read_text())
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    assert config["*.py"]["max_line_length"] == str(ruff["line-length"])
