"""What the two images of a generated pair have in common and what not: how often, and how much."""

from dataclasses import dataclass, replace

from runtime.errors import InputError
from train.data.randomness import Randomness


def happens(random: Randomness, share: float) -> bool:
    """Whether something does that has a share; where that is 0 nothing is drawn."""
    return share > 0 and random.chance(share)


@dataclass(frozen=True)
class Side:
    """What one image of a pair shows of their scene, and how.

    average: the blurred mean of many brains instead of one brain. plain: one brain beside such a mean; nothing is in it
        that the mean could not have.
    apart: values and scanner of its own, drawn widely; else nearly those of the other image.
    motion: how far deep structures move on their own, voxels. ventricles: voxels that they widen by, below 0 narrow.
    atrophy: voxels that the grey sheet is thinner and the furrows are wider by.
    residue: whether patches of dura and skull are left about the brain. lesions: bright or dark spots, their number.
    thicker: voxels that the grey sheet is thicker by, at the cost of its furrows.
    pallor: how far white matter's value has gone to that of grey matter, 0 to 1, as before it is myelinated.
    bending: size of the smooth deformation that the whole is seen through, 1 for that of `deformation`.
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
    """Shares of pairs, 0 to 1, in which one thing is drawn; what has a share of 0 costs no random number.

    structures: share of scenes with deep structures and ventricles. motion: the most that they move on their own,
    voxels. The other shares are of pairs, `average`, `residue`, `lesions` and `child` (see `Side.young`) on one side of
    them; of a child's brain there is no average. bending: see `Side`.
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
        """What the two images of a pair show."""
        apart = happens(random, self.apart)
        average, residue, lesions = (_one_side(random, share) for share in (self.average, self.residue, self.lesions))
        child = _one_side(random, self.child)
        widened, shrunk = (happens(random, share) for share in (self.ventricles, self.atrophy))
        sides = tuple(
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
        if child is None or sides[child].average:
            return sides
        young = sides[child].young(random)
        return (young, sides[1]) if child == 0 else (sides[0], young)


# Pairs of one data set, one scanner, one age, all well stripped, as papers have them.
ALIKE = Population()
# Pairs as users have them: a template, another hospital's scanner, another age, a stripping that left something.
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
    """One of the two sides, or with the rest of the chances none."""
    return random.count(0, 1) if happens(random, share) else None
