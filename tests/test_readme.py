"""The README's Python runs as it stands, and its messages are the ones that are raised."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import flax_sepconv as fsc

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_snippets_run(snippet):
    exec(compile(snippet, "README.md", "exec"), {})


def raised(function):
    with pytest.raises((ValueError, TypeError)) as error:
        function()
    return str(error.value)


def test_errors_read_as_the_readme_says():
    config = fsc.SeparableConv1DConfig(64, 3)
    params = fsc.init_params(jax.random.key(0), 11, config)
    x = jnp.ones((1, 9, 12))
    messages = [
        raised(lambda: fsc.SeparableConv1DConfig(64, 3, depthwise_regularizer="l3")),
        raised(lambda: fsc.separable_conv1d(params | {"depthwise_kernel": jnp.ones((3, 12, 1))}, x, config)),
        raised(lambda: fsc.separable_conv1d(params, x[:, :2], config)),
        raised(lambda: fsc.regularization_loss(params, {"conv": config})),
        raised(lambda: fsc.constrain(config).update(params, None)),
        raised(lambda: fsc.SeparableConv1DConfig(64, 3, activation=lambda x: x).get_config()),
    ]
    table = README.split("| message | meaning |\n| --- | --- |\n")[1].split("\n\n")[0].splitlines()
    assert len(table) == len(messages)
    for row, message in zip(table, messages, strict=True):
        shown = row.removeprefix("| `` ").split(" `` |")[0]
        pattern = ".*".join(re.escape(part.strip()) for part in shown.split("…"))
        assert re.match(pattern, message), message
