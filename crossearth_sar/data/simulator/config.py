"""What is simulated: the fields of a simulated dataset, and what they may be.

Lengths in metres, levels in dB, angles in degrees, as their names say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from crossearth_sar.config import require
from crossearth_sar.data.simulator.product import Form
from crossearth_sar.data.simulator.scattering import Band, Polarization
from crossearth_sar.errors import nearest

Region = Literal["temperate_north", "arid_south", "coastal"]
Part = Literal["amplitude", "real", "imaginary"]
Ground = Literal["settlement", "landscape"]


@dataclass(frozen=True, kw_only=True)
class SimulatorConfig:
    """What is simulated, and how the radar sees it."""

    length: int = 256
    """Scenes in the dataset."""
    image_size: int = 128
    """Pixels on a side."""
    seed: int = 0
    """Another seed, other places."""
    region: Region = "temperate_north"
    """Land cover, its shapes and small shifts of its backscatter."""
    polarization: Polarization = "HH"
    """One channel, or full: the mean intensity of all four."""
    band: Band = "C"
    """Carrier, from P (70 cm) to Ka (9 mm)."""
    resolution_m: float = 3.0
    """Ground pixel spacing in metres; objects keep their size in metres."""
    looks: float = 4
    """Looks averaged in intensity, or a product's equivalent number; 1 is single-look complex."""
    nesz_db: float = -28.0
    """Noise-equivalent sigma0 in dB: thermal noise added to every pixel."""
    incidence_deg: float = 38.0
    """Angle from the vertical; sets layover, shadow and the trend of sigma0."""
    texture_order: float | None = 6.0
    """Shape of the K distribution's gamma texture, small is rough; null or inf: none."""
    ground: Ground = "settlement"
    """settlement: objects in metres, for fine pixels; landscape: shapes on the scene's own scales."""
    speckle_correlation: float = 0.0
    """Of neighbouring pixels' intensities, 0 to 0.9: oversampling; products have 0.4 to 0.75."""
    peak_db: float | None = None
    """Bright echoes saturate this far above the mean; null: they do not."""
    slope_deg: float = 0.0
    """Rms slope of a landscape's relief, 0 (flat) to 40 degrees."""
    land_contrast: float = 1.0
    """Of the dB between land covers, so much is left: 1, as the table says, to 0, all alike."""
    sea_db: float = 0.0
    """A rough sea: added to the co-polarized sigma0 of water, dB; half to the cross-polarized."""
    wind_db: float = 0.0
    """Standard deviation of wind patches on water, dB."""
    slicks_db: float = 0.0
    """How much darker filaments of oil or calm are than the water around them, dB; 0: none."""
    gain_db: float = 0.0
    """Calibration offset of the whole image, dB."""
    form: Form = "float"
    """How values come: byte_amplitude and byte_db clip and quantise; byte_display is a stretched copy."""
    nodata: float = 0.0
    """Share of a scene beyond the swath's slanted edge, 0 to 0.9: ignored in the mask."""
    surroundings: float = 0.0
    """Share of ground outside the scene in its dB statistics, 0 to 0.95: a scene is a part of an image.
    Above 0 a sample carries these statistics."""
    sensors: Literal["one", "wide"] = "one"
    """wide: each scene draws its own sensor and landscape; resolution_m is the middle of their pixels."""
    part: Part = "amplitude"
    """The amplitude, or |Re z| or |Im z| of a single-look complex scene: real, imaginary."""

    def __post_init__(self) -> None:
        for name, hint in CHOICES.items():
            value, known = getattr(self, name), get_args(hint)
            if value not in known:
                require(False, name, value, " | ".join(known) + nearest(value, known))
        for name, least in (("length", 1), ("image_size", 16), ("seed", 0)):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= least, name, value, f"a whole number from {least}")
        for name, (low, high, unit) in RANGES.items():
            value = getattr(self, name)
            require(low <= value <= high, name, value, f"{low:g} to {high:g} {unit}".rstrip())
        order, peak = self.texture_order, self.peak_db
        require(order is None or order >= 0.1, "texture_order", order, "0.1 or more, or None for no texture")
        require(peak is None or 0 <= peak <= 60, "peak_db", peak, "0 to 60 dB, or None for no saturation")
        if self.part != "amplitude":
            self._require_complex()

    def _require_complex(self) -> None:
        got, what = self.part, f"part={self.part!r}"
        require(self.looks == 1, "looks", self.looks, f"1: {what} needs a complex scene")
        require(
            self.polarization != "full",
            "polarization",
            self.polarization,
            f"one channel: {what} needs a phase, and a mean of intensities has none",
        )
        require(self.sensors == "one", "part", got, "amplitude: sensors='wide' has many looks")
        require(self.form == "float", "form", self.form, f"float: {what} is no delivered image")


CHOICES: dict[str, Any] = {
    "region": Region,
    "polarization": Polarization,
    "band": Band,
    "part": Part,
    "ground": Ground,
    "form": Form,
    "sensors": Literal["one", "wide"],
}
"""Fields of SimulatorConfig that are one of a few words."""

RANGES: dict[str, tuple[float, float, str]] = {
    "resolution_m": (0.1, 100, "metres"),
    "looks": (1, 1000, ""),
    "nesz_db": (-80, 0, "dB"),
    "incidence_deg": (10, 70, "degrees"),
    "speckle_correlation": (0, 0.9, ""),
    "slope_deg": (0, 40, "degrees"),
    "land_contrast": (0, 2, ""),
    "sea_db": (-10, 20, "dB"),
    "wind_db": (0, 10, "dB"),
    "slicks_db": (0, 20, "dB"),
    "gain_db": (-60, 60, "dB"),
    "surroundings": (0, 0.95, ""),
    "nodata": (0, 0.9, ""),
}
"""Fields that are a number: least, greatest, unit."""
