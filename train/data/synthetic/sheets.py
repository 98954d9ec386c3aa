"""Brain-like anatomies of a folded grey sheet around a white core, painted as one brain or as the mean of many.

An anatomy is described by level functions: smooth fields in voxels, positive inside, whose zero set is a border. The
second image of a pair is painted from the same fields with small random changes, so that folds appear and disappear as
they do between persons.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from train.data.randomness import Randomness, shape_of
from train.data.synthetic.defects import with_lesions, with_residue
from train.data.synthetic.deformation import own_motion
from train.data.synthetic.levels import Painting, blur, distance, edge
from train.data.synthetic.population import Side
from train.data.synthetic.structures import Structures

AVERAGED, SPREAD = 5, 2.0  # brains in the mean of an anatomy; factor by which they differ more than two of a pair
PLAIN_SPREAD = 0.5  # factor for a brain that is paired with its average
TEMPLATE_IMAGE_SHARE = 0.6  # share of averages that show the template itself, if there is one


@dataclass(frozen=True)
class Shares:
    """Shares of tissue.

    Attributes:
        white: share of white matter in each voxel, 0 to 1.
        matter: share of grey and white matter together, 0 to 1.
        level: level function of grey and white matter together.
    """

    white: Tensor
    matter: Tensor
    level: Tensor


@dataclass(frozen=True)
class Sheets:
    """An anatomy of a folded grey sheet around a white core, with deep structures, in fluid. Maps are (I, J, K).

    Attributes:
        white: level function of the core, about 0.5 deep inside.
        steep: smallest slope per voxel that `white` is divided by to get distances.
        grey: level function of grey matter outside the sheet, such as deep nuclei.
        depth: depth below the outer surface, voxels, negative outside.
        shade: how far the core's value is moved towards that of grey matter, about 0 to 1.
        thickness: thickness of the sheet, voxels.
        parcels: region of each voxel, 1 to `parcel_count`, int64.
        parcel_count: number of regions.
        inclusions: level function and value of each structure of noise inside the core.
        values: values of fluid, grey and white matter.
        contrast: deviation added to the value of each label, (labels, 1).
        stripped: whether fluid less than `fluid_depth` below the surface is black, as often after skull stripping.
        fluid_depth: see `stripped`, voxels.
        softness: width of the borders, voxels.
        structures: deep structures that move relative to the rest in each image, or None.
        template: the blurred brain that the anatomy is made from, (3, I, J, K): image, shares of grey and of white
            matter; or None.
    """

    white: Tensor
    steep: float
    grey: Tensor
    depth: Tensor
    shade: Tensor
    thickness: float
    parcels: Tensor
    parcel_count: int
    inclusions: tuple[tuple[Tensor, float], ...]
    values: tuple[float, float, float]
    contrast: Tensor
    stripped: bool
    fluid_depth: float
    softness: float
    structures: Structures | None = None
    template: Tensor | None = None

    def paint(self, random: Randomness, side: Side) -> Painting:
        """Paint one image: the shared anatomy with the image's own random changes."""
        painting = self._average(random) if side.average else self._brain(random, side)
        if side.residue:
            painting = with_residue(random, painting, self.depth)
        if side.lesions:
            painting = with_lesions(random, painting, self.depth, side.lesions)
        if side.motion or side.ventricles:
            ventricle = None if self.structures is None else self.structures.ventricle
            painting = replace(painting, motion=own_motion(random, self.depth, ventricle, side))
        return painting

    def _brain(self, random: Randomness, side: Side) -> Painting:
        """Paint one person's brain."""
        shares = self._shares(random, side, PLAIN_SPREAD if side.plain else 1.0)
        painting = self._filled(random, shares, side)
        depth = self.depth + random.between(0, 0.6) * random.smooth(shape_of(self.depth), random.between(6, 16))
        return replace(painting, shown=self._shown(random, depth, shares.level))

    def _average(self, random: Randomness) -> Painting:
        """Paint the template itself or the mean of many brains; in both, fluid is not stripped."""
        in_order = self.values[0] < self.values[1] < self.values[2]
        if self.template is not None and in_order and random.chance(TEMPLATE_IMAGE_SHARE):
            image, grey, white = self.template
            painting = self._filled(random, Shares(white, white + grey, white), Side(average=True))
            return replace(painting, image=image)
        brains = [self._shares(random, Side(), SPREAD) for _ in range(AVERAGED)]
        white, matter, level = (
            sum(getattr(brain, name) for brain in brains) / AVERAGED for name in ("white", "matter", "level")
        )
        painting = self._filled(random, Shares(white, matter, level), Side(average=True))
        return replace(painting, image=blur(blur(painting.image, 2 / 3), 2 / 3))

    def _shares(self, random: Randomness, side: Side, spread: float = 1.0) -> Shares:
        """Draw the tissue shares of one person; `spread` scales how far the folds differ from those of the scene."""
        shape = shape_of(self.depth)
        white = self.white + spread * random.between(0.15, 0.4) * random.smooth(shape, random.between(4, 10))
        core = distance(white, self.steep) - side.atrophy / 2
        uneven = random.normal(0.25) + 0.3 * random.smooth(shape, random.between(8, 20))
        thickness = self.thickness + side.thicker + uneven
        nuclei = 8 * (self.grey + random.between(0, 0.08) * random.smooth(shape, random.between(6, 12)))
        if self.structures is not None:
            core = torch.maximum(core, self.structures.capsule)
        matter = torch.maximum(core + thickness - side.atrophy / 2, nuclei)
        return Shares(edge(core / self.softness), edge(matter / self.softness), matter)

    def _filled(self, random: Randomness, shares: Shares, side: Side) -> Painting:
        """Paint values and labels of tissues, regions and structures; everything below the surface is shown."""
        fluid, grey, white = (value + random.normal(0.02) for value in self.values)
        bright = white + (grey - white) * (self.shade + side.pallor)
        image = fluid + shares.matter * (grey - fluid) + shares.white * (bright - grey)
        # A label for each tissue and region: fluid 1..P, grey P+1..2P, white 2P+1..3P.
        labels = ((shares.matter > 0.5).long() + (shares.white > 0.5).long()) * self.parcel_count + self.parcels
        if not (side.average or side.plain):
            image, labels = self._varied(image, labels, shares.white)
        if self.structures is not None:
            softness = self.softness + 2 * side.average
            image, labels = self.structures.painted(random, image, labels, (fluid, grey, white), softness, side)
        return Painting(image, self.depth, labels)

    def _varied(self, image: Tensor, labels: Tensor, white: Tensor) -> tuple[Tensor, Tensor]:
        """Add the contrast of regions to the image, and the inclusions to image and labels."""
        image = image + F.embedding(labels, self.contrast)[..., 0]
        for number, (level, value) in enumerate(self.inclusions, start=1):
            inside = edge(level * 4) * white
            image = image + (value - image) * inside
            labels = torch.where(inside > 0.5, 3 * self.parcel_count + number, labels)
        return image, labels

    def _shown(self, random: Randomness, depth: Tensor, matter: Tensor) -> Tensor:
        """Return a level function, positive where the image is not black: the brain with or without its fluid."""
        if not self.stripped:
            return depth
        deep = depth - self.fluid_depth - 2 * random.smooth(shape_of(depth), 20)
        return torch.minimum(depth, torch.maximum(matter + random.between(-0.4, 0.9), deep))
