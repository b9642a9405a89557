"""What earlier failures leave of an offer's candidates; an image that failed gives way to another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from clorefleet.domain.failure import Exclusion
from clorefleet.domain.offer import Offer
from clorefleet.domain.recipe import Recipe
from clorefleet.planner.shapes import Candidate
from clorefleet.planner.software import parse_version


def not_excluded(
    candidates: Iterable[Candidate], exclusions: tuple[Exclusion, ...], offer: Offer, recipe: Recipe
) -> list[Candidate]:
    """Each candidate as it is, or with the first of its engine's other images that is not excluded."""
    if not exclusions:
        return list(candidates)
    found = (_allowed(each, exclusions, offer, recipe) for each in candidates)
    return [each for each in found if each is not None]


def _allowed(
    candidate: Candidate, exclusions: tuple[Exclusion, ...], offer: Offer, recipe: Recipe
) -> Candidate | None:
    support = recipe.engine(candidate.setup.engine)
    older = [each for each in support.variants if _runs_on(each.min_cuda, offer)]
    for image in dict.fromkeys((candidate.setup.image, *(each.image for each in older))):
        setup = replace(candidate.setup, image=image)
        if not any(each.matches(offer, setup) for each in exclusions):
            return replace(candidate, setup=setup)
    return None


def _runs_on(min_cuda: str, offer: Offer) -> bool:
    return offer.cuda_version is not None and offer.cuda_version >= parse_version(min_cuda)
