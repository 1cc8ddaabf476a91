"""What Hydra reads again and again is parsed once, for tests that compose many options."""

import contextlib
import copy
import functools

import omegaconf
import pytest
import yaml


@functools.cache
def _parsed(text):
    return yaml.load(text, Loader=omegaconf._utils.get_yaml_loader())


def _load(file):
    """omegaconf.OmegaConf.load of an open file; parsed once for each text."""
    content = copy.deepcopy(_parsed(file.read()))
    return omegaconf.OmegaConf.create({} if content is None else content)


@contextlib.contextmanager
def parsed_once():
    """Let each text of options, and each file that a config lies in, be parsed once."""
    from hydra._internal.core_plugins import file_config_source

    class Loading(omegaconf.OmegaConf):
        load = staticmethod(_load)

    with pytest.MonkeyPatch.context() as patch:
        parse = functools.cache(omegaconf.grammar_parser.parse)
        for module in (omegaconf.base, omegaconf._utils):
            patch.setattr(module, "parse", parse)
        patch.setattr(file_config_source, "OmegaConf", Loading)
        yield patch
