"""The stick that hits and scratches."""

from dataclasses import dataclass

import cv2
import numpy as np

from foley_training.data.canvas import FRACTION, Colour, Floats, Image, disc, fixed
from foley_training.data.scene import HELD_OUT_STYLE, Scene

_COLOURS = ((205, 160, 100), (140, 85, 45), (85, 50, 30), (190, 70, 40), (225, 190, 130), (40, 38, 36))
_HELD_OUT_COLOURS = ((235, 235, 225), (120, 165, 240))


@dataclass(frozen=True)
class Stick:
    """A drumstick, tapered towards a round tip (bead); the hand is outside the frame."""

    colour: Colour
    side: int  # side of the hand: -1 left, 1 right
    elevation: float  # radians
    lean: float  # rotation of the stick as its tip is lifted, in radians per stick length
    length: float  # px
    radius: float  # px, at the tip
    bead: float  # px

    @classmethod
    def sample(cls, scene: Scene, wall: Colour, random: np.random.Generator) -> "Stick":
        """Draw a stick with a colour that is distinct from the wall's."""
        if scene.style == HELD_OUT_STYLE:
            colours = np.array(_HELD_OUT_COLOURS, np.float64)
        else:
            colours = np.array(_COLOURS, np.float64)
            difference = np.abs(colours - wall).sum(axis=1)
            colours = colours[difference >= min(150, np.sort(difference)[-2])]
        radius = random.uniform(3.2, 5.4)
        return cls(
            colour=random.choice(colours) * random.uniform(0.9, 1.1),
            side=int(random.choice((-1, 1))),
            elevation=random.uniform(0.2, 0.95),
            lean=random.uniform(0.3, 0.8),
            length=random.uniform(130, 280),
            radius=radius,
            bead=radius * random.uniform(1.05, 1.6),
        )

    def draw_over(self, image: Image, x: float, y: float, above: float, light: Floats) -> Image:
        """Return the image with the stick drawn over it; its bead touches (x, y), `above` pixels above the surface."""
        image = image.copy()
        elevation = self.elevation - self.lean * above / self.length
        direction = np.array([self.side * np.cos(elevation), -np.sin(elevation)])
        normal = np.array([-direction[1], direction[0]]) * self.side  # down, the dark side
        tip = np.array([x, y - self.bead])
        end = tip + self.length * direction
        for width, offset, shade in ((1.0, 0.0, 0.5), (0.78, -0.18, 1.0), (0.2, -0.4, 1.3)):
            colour = np.clip(self.colour * shade * light, 0, 255)
            at_tip, at_end = self.radius, 1.7 * self.radius
            corners = (
                tip + normal * at_tip * (offset + width),
                tip + normal * at_tip * (offset - width),
                end + normal * at_end * (offset - width),
                end + normal * at_end * (offset + width),
            )
            cv2.fillConvexPoly(image, fixed(corners), colour.tolist(), cv2.LINE_AA, FRACTION)
            disc(image, tip + normal * self.bead * offset, self.bead * width, colour)
        return image
