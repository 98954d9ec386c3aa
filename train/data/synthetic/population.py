"""Populations of generated pairs: how often and how much the two images of a pair differ."""

from dataclasses import dataclass, replace

from runtime.errors import InputError
from train.data.randomness import Randomness


def happens(random: Randomness, share: float) -> bool:
    """Return True with probability `share`; a share of 0 draws no random number."""
    return share > 0 and random.chance(share)


@dataclass(frozen=True)
class Side:
    """The appearance of the scene in one image of a pair.

    Attributes:
        average: whether it shows the blurred mean of many brains instead of one brain.
        plain: whether it shows one brain while the other image shows such a mean; it then has no feature that a mean
            could not have.
        apart: whether its values and scanner are drawn widely; otherwise they are nearly those of the other image.
        motion: standard deviation of deep structures' own motion, voxels.
        ventricles: widening of the ventricles, voxels; negative values narrow them.
        atrophy: thinning of the grey sheet and widening of the furrows, voxels.
        residue: whether patches of dura and skull are left around the brain.
        lesions: number of bright or dark spots.
        thicker: thickening of the grey sheet at the cost of its furrows, voxels.
        pallor: how far white matter's value is moved towards that of grey matter, 0 to 1, as before myelination.
        bending: factor on the smooth deformation of the whole image; 1 is that of `deformation`.
    """

    average: bool = False
    plain: bool = False
    apart: bool = False
    motion: float = 0.0
    ventricles: float = 0.0
    atrophy: float = 0.0
    residue: bool = False
    lesions: int = 0
    thicker: float = 0.0
    pallor: float = 0.0
    bending: float = 1.0

    def young(self, random: Randomness) -> "Side":
        """Return the side as a child's brain: thick sheet, narrow furrows, pale white matter, other proportions."""
        return replace(
            self,
            ventricles=min(self.ventricles, 0.0),
            atrophy=0.0,
            thicker=random.between(0.3, 1.0),
            pallor=random.between(0.1, 0.5),
            bending=1.5 * self.bending,
        )


@dataclass(frozen=True)
class Population:
    """Shares of pairs, 0 to 1, that have a given feature; a share of 0 draws no random number.

    Attributes:
        average: share of pairs with the mean of many brains on one side.
        apart: share of pairs whose values and scanners are drawn widely.
        structures: share of scenes with deep structures and ventricles.
        motion: largest standard deviation of deep structures' own motion, voxels.
        ventricles: share of pairs whose ventricles are widened or narrowed.
        atrophy: share of pairs with atrophy.
        residue: share of pairs with residue of skull stripping on one side.
        lesions: share of pairs with lesions on one side.
        child: share of pairs with a child's brain (`Side.young`) on one side, unless that side shows an average.
        bending: see `Side`.
    """

    average: float = 0.0
    apart: float = 0.0
    structures: float = 0.0
    motion: float = 0.0
    ventricles: float = 0.0
    atrophy: float = 0.0
    residue: float = 0.0
    lesions: float = 0.0
    child: float = 0.0
    bending: float = 1.0

    def __post_init__(self) -> None:
        for name in ("average", "apart", "structures", "ventricles", "atrophy", "residue", "lesions", "child"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a share of pairs, 0 to 1")

    def sides(self, random: Randomness) -> tuple[Side, Side]:
        """Draw the appearances of the two images of a pair."""
        apart = happens(random, self.apart)
        average, residue, lesions = (_one_side(random, share) for share in (self.average, self.residue, self.lesions))
        child = _one_side(random, self.child)
        widened, shrunk = (happens(random, share) for share in (self.ventricles, self.atrophy))
        first, second = (
            Side(
                average=average == number,
                plain=average == 1 - number,
                apart=apart,
                motion=random.between(0, self.motion) if self.motion else 0.0,
                ventricles=random.between(-1.5, 3.5) if widened else 0.0,
                atrophy=random.between(0, 1.0) if shrunk else 0.0,
                residue=residue == number,
                lesions=random.count(1, 6) if lesions == number else 0,
                bending=self.bending,
            )
            for number in (0, 1)
        )
        sides = first, second
        if child is None or sides[child].average:
            return sides
        young = sides[child].young(random)
        return (young, sides[1]) if child == 0 else (sides[0], young)


# Pairs as in papers: one data set, one scanner, one age, all well stripped.
ALIKE = Population()
# Pairs as users have them: a template, another hospital's scanner, another age, incomplete skull stripping.
VARIED = Population(
    average=0.2,
    apart=0.45,
    structures=0.85,
    motion=1.8,
    ventricles=0.4,
    atrophy=0.3,
    residue=0.15,
    lesions=0.15,
    child=0.08,
    bending=0.8,
)
POPULATIONS = {"alike": ALIKE, "varied": VARIED}


def _one_side(random: Randomness, share: float) -> int | None:
    """Return one of the two sides, 0 or 1, with probability `share`, else None."""
    return random.count(0, 1) if happens(random, share) else None
