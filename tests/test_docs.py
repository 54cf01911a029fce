"""The docs' Python runs as it stands, their messages are the ones that are raised, and no public name is left out."""

import importlib
import inspect
import json
import re
import shutil
import types

import jax
import jax.numpy as jnp
import matplotlib
import pytest
from matplotlib import pyplot

import flax_sepconv as fsc
from flax_sepconv._kernels import dispatch
from tests.snippets import ROOT, snippets

DOCS = ROOT / "docs"
PAGES = snippets()


@pytest.mark.parametrize("page", PAGES)
def test_snippets_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(DOCS / "notebooks/motion.keras", tmp_path)
    exec(compile(PAGES[page], str(ROOT / page), "exec"), {"__name__": page})


NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_run_in_short_and_have_outputs(notebook, monkeypatch):
    cells = [cell for cell in json.loads(notebook.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells), "run it, CONTRIBUTING.md says how"
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    code = "\n".join("".join(cell["source"]) for cell in cells)
    code, count = re.subn(r"^STEPS = \d+", "STEPS = 2", code, flags=re.MULTILINE)
    assert count == 1
    monkeypatch.syspath_prepend(notebook.parent)
    monkeypatch.chdir(notebook.parent)
    with matplotlib.rc_context({"backend": "Agg"}):
        exec(compile(code, str(notebook), "exec"), {"__name__": notebook.stem})
        pyplot.close("all")


# ---- The API reference ------------------------------------------------------------------------------------

REFERENCE = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
DESCRIBED = set(re.findall(r"^::: ([\w.]+)$", REFERENCE, re.MULTILINE))
MODULES = ["flax_sepconv.interop.keras", "flax_sepconv.interop.safetensors", "flax_sepconv.interop.torch"]
MODULES += [
    f"flax_sepconv.{name}" for name in fsc.__all__ if isinstance(getattr(fsc, name), types.ModuleType)
]
MODULES.remove("flax_sepconv.interop")


def public_names(module: str) -> list[str]:
    return [f"{module}.{name}" for name in importlib.import_module(module).__all__]


def test_the_reference_has_every_public_name():
    names = [name for name in public_names("flax_sepconv") if name not in {*MODULES, "flax_sepconv.interop"}]
    names += [name for module in MODULES for name in public_names(module)]
    missing = []
    for name in names:
        module, _, own = name.rpartition(".")
        # A page of a whole module shows what has a docstring; other names of the same are in a table there.
        value = getattr(importlib.import_module(module), own)
        documented = module in DESCRIBED and own == getattr(value, "__name__", None) and inspect.getdoc(value)
        if not (name in DESCRIBED or documented or f"`{own}`" in REFERENCE):
            missing.append(name)
    assert not missing
    for name in DESCRIBED:
        module, _, own = name.rpartition(".")
        assert hasattr(importlib.import_module(module), own), name


# ---- Error messages ---------------------------------------------------------------------------------------


def raised(function):
    with pytest.raises((ValueError, TypeError)) as error:
        function()
    return str(error.value)


def test_errors_read_as_the_docs_say():
    config = fsc.SeparableConv1DConfig(64, 3)
    params = fsc.init_params(jax.random.key(0), 11, config)
    x = jnp.ones((1, 9, 12))
    messages = [
        raised(lambda: fsc.SeparableConv1DConfig(64, 3, depthwise_regularizer="l3")),
        raised(lambda: fsc.separable_conv1d(params | {"depthwise_kernel": jnp.ones((3, 12, 1))}, x, config)),
        raised(lambda: fsc.separable_conv1d(params, x[:, :2], config)),
        raised(lambda: fsc.regularization_loss(params, {"conv": config})),
        raised(lambda: fsc.constrain(config).update(params, None)),
        raised(lambda: jax.jit(lambda given: fsc.separable_conv1d(params, x, given))(1.0)),
        raised(lambda: fsc.SeparableConv1DConfig(64, 3, activation=lambda x: x).get_config()),
    ]
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    table = page.split("| message | meaning |\n| --- | --- |\n")[1].split("\n\n")[0].splitlines()
    assert len(table) == len(messages)
    for row, message in zip(table, messages, strict=True):
        shown = row.removeprefix("| `` ").split(" `` |")[0]
        pattern = ".*".join(re.escape(part.strip()) for part in shown.split("…"))
        assert re.match(pattern, message), message


def test_the_bounds_of_each_form_are_those_of_dispatch():
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    cpu, gpu = dispatch.TUNINGS["cpu"], dispatch.TUNINGS["cuda"]
    assert isinstance(cpu, dispatch.CPUTuning)
    wholes = f"below {cpu.fft_from} taps in blocks of channels, below {cpu.fft_unblocked_from} without"
    assert f"| {wholes} | below {gpu.fft_from} taps |" in page
    assert f"from {cpu.fft_kernel_from} taps on a CPU, and from {gpu.fft_kernel_from} taps on a GPU" in page
    few = f"up to {cpu.few} taps, outputs with strides up to about {cpu.few} times `strides` taps"
    assert f"| {few}; for the kernel's gradient up to {cpu.few_kernel} |" in page
    blocks = (
        f"from {cpu.blocked_from} taps, if taps times channels are {cpu.blocked_floats} or more, and above"
    )
    assert f"| {blocks} {cpu.blocked_most} taps | blocks of {cpu.lanes} channels" in page


def test_the_readme_is_short():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(readme) <= 150
    assert sum(line.startswith("python3 -m venv") and "python -m pytest" in line for line in readme) == 1
