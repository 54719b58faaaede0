"""Which class of a domain each class of a model counts as: by name, by what the user says, or as «other».

A model of seven classes can be scored on labels of water alone. Nothing is guessed: a class of the model that
neither has a namesake nor is said to count as something is refused, unless the domain has a class «other».

K classes of the model, C classes of the domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossearth_sar.errors import InputError, nearest

FALLBACK = "other"
"""A class of a domain that stands for all classes it does not name."""

CountsAs = Mapping[str, Sequence[str]]
"""Class of the domain -> classes of the model that count as it."""


@dataclass(frozen=True)
class ClassMapping:
    """to_domain: (K,) indices into the domain's classes. notes: what is not by name, a sentence each."""

    to_domain: tuple[int, ...]
    notes: tuple[str, ...] = ()


def parse_counts_as(assignments: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`["other=building,road"]` -> `{"other": ("building", "road")}`."""
    found: dict[str, tuple[str, ...]] = {}
    for text in assignments:
        name, equals, classes = text.partition("=")
        parts = tuple(part.strip() for part in classes.split(",") if part.strip())
        if not equals or not name.strip() or not parts or name.strip() in found:
            raise InputError(
                "cannot read --as",
                got=repr(text),
                expected="DOMAIN_CLASS=MODEL_CLASS,MODEL_CLASS…, each class of the domain once",
                fix="write --as other=building,road",
            )
        found[name.strip()] = parts
    return found


def map_classes(
    model: str, names: Sequence[str] | None, count: int, domain: str, classes: Sequence[str], said: CountsAs
) -> ClassMapping:
    """The mapping of one model onto one domain.

    Args:
        model, domain: what to call them in a message.
        names: the model's classes; None where it does not say: then they are the domain's, by their order.
        count: K.
        classes: the domain's.
        said: what counts as what; names that this model or this domain does not have are passed over
            (`require_known` looks at those that none has).

    Raises:
        InputError: a class of the model is left over, or one of the domain that nothing counts as.
    """
    if names is None:
        return _by_order(model, count, domain, classes)
    place = {name.casefold(): i for i, name in enumerate(classes)}
    told = {
        part.casefold(): place[name.casefold()]
        for name, parts in said.items()
        if name.casefold() in place
        for part in parts
    }
    to_domain: list[int | None] = [told.get(n.casefold(), place.get(n.casefold())) for n in names]
    left = [name for name, index in zip(names, to_domain, strict=True) if index is None]
    notes = [
        f"{n} of the model counts as «{classes[told[n.casefold()]]}», as --as says"
        for n in names
        if n.casefold() in told
    ]
    if left and FALLBACK in place:
        notes.append(f"{', '.join(left)} of the model count as «{classes[place[FALLBACK]]}» of the labels")
        to_domain = [place[FALLBACK] if index is None else index for index in to_domain]
    elif left:
        raise InputError(
            f"classes of {model} that the domain {domain!r} does not have",
            got=", ".join(left),
            expected=f"each to count as one of {', '.join(classes)}",
            fix=f"say as which: --as {classes[0]}={','.join(left)}",
        )
    found = tuple(index for index in to_domain if index is not None)
    missing = [name for i, name in enumerate(classes) if i not in found]
    if missing:
        raise InputError(
            f"classes of the domain {domain!r} that {model} cannot predict",
            got=", ".join(missing),
            expected=f"for each at least one of {', '.join(names)}",
            fix="say which count as it with --as, or map its labels to another class or to ignore: "
            "label_values of the folder",
        )
    return ClassMapping(found, tuple(notes))


def require_known(
    said: CountsAs, of_models: Sequence[Sequence[str]], of_domains: Sequence[Sequence[str]]
) -> None:
    """InputError where --as names a class that no model, or no domain, has."""
    for words, given, known in (
        ("domain", list(said), of_domains),
        ("model", [part for parts in said.values() for part in parts], of_models),
    ):
        every = list(dict.fromkeys(name for names in known for name in names))
        for name in given:
            if name.casefold() not in {k.casefold() for k in every}:
                raise InputError(
                    f"--as: no {words} has a class {name!r}{nearest(name, every)}",
                    expected=f"one of {', '.join(every)}",
                )


def _by_order(model: str, count: int, domain: str, classes: Sequence[str]) -> ClassMapping:
    if count != len(classes):
        raise InputError(
            f"{model} does not say what its classes are, and has not as many as the domain {domain!r}",
            got=f"{count}",
            expected=f"{len(classes)}: {', '.join(classes)}",
            fix='name them in its config.json: "classes": {"names": […], "palette": null}',
        )
    note = f"the model does not name its classes: they are taken to be {', '.join(classes)}, in this order"
    return ClassMapping(tuple(range(count)), (note,))
