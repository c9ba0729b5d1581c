"""Secrets are a type that cannot be printed, compared with text, pickled or formatted by accident."""

import copy
import json
import pickle

import msgspec
import pytest

from proxy.types import Secret

SECRET = "sk-very-secret"


def test_no_way_of_showing_a_secret_shows_it():
    secret = Secret(SECRET)
    shown = (repr(secret), str(secret), f"{secret}", f"{secret!s:>40}", "%s" % secret, repr([secret]))  # noqa: UP031
    assert [text for text in shown if SECRET in text] == []
    assert secret.reveal() == SECRET


def test_a_secret_is_not_equal_to_its_text():
    assert Secret(SECRET) != SECRET


@pytest.mark.parametrize("dump", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps, msgspec.json.encode])
def test_a_secret_cannot_be_copied_out(dump):
    with pytest.raises(TypeError):
        dump(Secret(SECRET))


def test_an_empty_secret_is_false():
    assert not Secret("")
    assert Secret("x")
