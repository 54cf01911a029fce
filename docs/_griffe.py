"""What the site has to be told of the source: constructors that Linen generates, and that an example is code."""

import ast
import inspect
import re

import flax.linen as nn
import griffe

import flax_sepconv as fsc


class Told(griffe.Extension):
    """Changes what was read of the source."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Calls the section of a docstring's example by the one name that is shown as code."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE
            )

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        """Gives each public Linen module the signature that `help` shows."""
        for name in fsc.__all__:
            value = getattr(fsc, name)
            if not (isinstance(value, type) and issubclass(value, nn.Module)):
                continue
            cls = pkg[value.__module__.removeprefix("flax_sepconv.")][value.__name__]

            def expression(text: str, parent: griffe.Class = cls):
                return griffe.safe_get_expression(ast.parse(text, mode="eval").body, parent=parent)

            found = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
            for each in [*inspect.signature(value.__init__).parameters.values()][1:]:
                if each.name == "parent":  # Linen's own
                    continue
                found.append(
                    griffe.Parameter(
                        each.name,
                        annotation=expression(inspect.formatannotation(each.annotation).strip("'")),
                        kind=griffe.ParameterKind[each.kind.name.lower()],
                        default=None if each.default is each.empty else _shown(each.default),
                    )
                )
            cls["__init__"] = griffe.Function("__init__", parameters=griffe.Parameters(*found), parent=cls)


def _shown(default: object) -> str:
    return f"jnp.{default.__name__}" if hasattr(default, "__name__") else repr(default)
