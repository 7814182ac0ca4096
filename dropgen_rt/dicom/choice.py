"""Which stack is meant: the one that was named, or the only one that the model's rule leaves."""

from collections.abc import Sequence

from dropgen_rt.dicom.catalogue import INDEX, Candidate, Catalogue, where
from dropgen_rt.errors import UnreadableInputError, UnsuitableInputError
from dropgen_rt.manifest import SourceRule
from dropgen_rt.scan_header import refusal

#: How many stacks a refusal lists; ``inspect`` lists them all.
LISTED = 8


def choose(found: Catalogue, rule: SourceRule, series: str | None = None) -> Candidate:
    """The stack to segment: usable, and the only one possible. Raises InputError with the candidates' names."""
    source = found.files.source
    if series is not None:
        named = _named(found, series)
        return _usable(found, named)
    if not found.candidates:
        given = "no image series" + (f" ({'; '.join(left_out(found))})" if found.left_out else "")
        index = any(reason == INDEX for reason, _ in found.left_out)
        step = "name the folder that the DICOMDIR lies in" if index else "export the images"
        raise refusal(UnsuitableInputError, source, given, "CT, MR or PET images", step)
    fitting = [item for item in found.candidates if fits(item, rule)]
    volumes = [item for item in fitting if not item.planning] or fitting
    if len(volumes) > 1 and volumes[0].planning:
        given = f"no volume, only single images or localisers: {_listing(volumes)}"
        raise refusal(UnsuitableInputError, source, given, "a stack of slices", "export the whole series")
    chosen = thickest(volumes) if rule.pick == "thickest" else volumes
    if len(chosen) == 1:
        return _usable(found, chosen[0])
    possible = chosen or found.candidates
    if all(item.refused is not None for item in possible):  # to name one would not help
        return _usable(found, next((item for item in possible if not item.planning), possible[0]))
    if not fitting:
        given = f"no series that the model takes ({rule.describe()}) among {_listing(found.candidates)}"
        raise refusal(UnsuitableInputError, source, given, "one that it takes", "name one with --series UID")
    given = f"{len(chosen)} possible stacks: {_listing(chosen)}"
    raise refusal(UnsuitableInputError, source, given, "one", "name one with --series UID; 'inspect' shows all")


def fits(item: Candidate, rule: SourceRule) -> bool:
    """Whether a stack's modality, body part and image type are those of the rule; a silent header fits."""
    header = item.stack.header
    if rule.modality and header.modality and header.modality not in rule.modality:
        return False
    if rule.body_part and header.body_part and header.body_part not in rule.body_part:
        return False
    unwanted = {part[1:] for part in rule.image_type if part.startswith("!")}
    wanted = {part for part in rule.image_type if not part.startswith("!")}
    return wanted <= set(header.image_type) and not unwanted & set(header.image_type)


def thickest(items: Sequence[Candidate]) -> list[Candidate]:
    """Those with the most slices; a stack that the gate refuses competes too, so that it is not passed over."""
    most = max((len(item.stack.slices) for item in items), default=0)
    return [item for item in items if len(item.stack.slices) == most]


def left_out(found: Catalogue) -> list[str]:
    """One phrase per reason for leaving files out."""
    return [f"{count} x {reason}" for reason, count in found.left_out]


def summary(item: Candidate) -> str:
    """A stack in a few words: kind, size, spacing."""
    header = item.stack.header
    words = [header.modality or "?", header.body_part, f"{header.columns} x {header.rows} x {len(item.stack.slices)}"]
    return " ".join(word for word in (*words, item.stack.distinct) if word)


def _listing(items: Sequence[Candidate]) -> str:
    shown = [f"{item.stack.name} ({summary(item)})" for item in items[:LISTED]]
    more = len(items) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _named(found: Catalogue, series: str) -> Candidate:
    matches = [item for item in found.candidates if series in (item.stack.name, item.stack.series)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        volumes = [item for item in matches if not item.planning]
        if len(volumes) == 1:
            return volumes[0]
        given = f"series {series} has {len(matches)} stacks: {_listing(matches)}"
        raise refusal(UnsuitableInputError, found.files.source, given, "one stack", "name it as --series UID:NUMBER")
    given = f"no series {series[:70]!r} among {_listing(found.candidates) or 'no images'}"
    raise refusal(UnsuitableInputError, found.files.source, given, "one of these", "check the UID")


def _usable(found: Catalogue, item: Candidate) -> Candidate:
    if item.refused is not None:
        reason = item.refused
        raise refusal(reason.kind, found.files.source, reason.given, reason.accepted, reason.step)
    if found.damaged:
        place = where(found.files, found.damaged[0])
        given = f"{len(found.damaged)} damaged DICOM files ({place}), perhaps of this series"
        step = "export again, or remove them if they do not belong to it"
        raise refusal(UnreadableInputError, found.files.source, given, "undamaged files", step)
    return item
