"""Small images in the layouts of products: SAFE, ENVI C3, NISAR's HDF5, SICD, VRT, file pairs.

Every function writes below `place` and gives back what is to be read of it, (C, H, W).
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

HEIGHT, WIDTH = 60, 50
ORIGIN_X, ORIGIN_Y, STEP = 500_000.0, 4_600_000.0, 20.0


def amplitudes(bands: int, seed: int = 0) -> np.ndarray:
    """(bands, HEIGHT, WIDTH) uint16: a dark and a bright half in speckle."""
    speckle = np.random.default_rng(seed).rayleigh(size=(bands, HEIGHT, WIDTH))
    mean = np.where(np.arange(WIDTH) < WIDTH // 2, 40, 300)
    return (speckle * mean + 1).astype(np.uint16)


def corners() -> list[Any]:
    """Ground control points at the corners, in degrees."""
    from rasterio.control import GroundControlPoint

    return [
        GroundControlPoint(row, column, x=14.9 + 1e-4 * column, y=41.5 - 1e-4 * row, z=12.5, id=f"{i}")
        for i, (row, column) in enumerate(((0, 0), (0, WIDTH), (HEIGHT, 0), (HEIGHT, WIDTH)))
    ]


def safe(place: Path, name: str = "S1A_IW_GRDH_1SDV_20260101T000000.SAFE") -> np.ndarray:
    """A Sentinel-1 GRD product; vv, vh."""
    import rasterio

    values = amplitudes(2)
    root = place / name
    for folder in ("measurement", "annotation/calibration", "preview"):
        (root / folder).mkdir(parents=True)
    (root / "manifest.safe").write_text('<xfdu:XFDU xmlns:xfdu="urn:ccsds:schema:xfdu:1"/>')
    for number, (polarization, band) in enumerate((("vh", values[1]), ("vv", values[0])), 1):
        base = f"s1a-iw-grd-{polarization}-20260101t000000-20260101t000025-000001-000001-{number:03}"
        with rasterio.open(
            root / "measurement" / f"{base}.tiff", "w", driver="GTiff", dtype="uint16", count=1,
            height=HEIGHT, width=WIDTH, gcps=corners(), crs="EPSG:4326",
        ) as file:  # fmt: skip
            file.write(band, 1)
        (root / "annotation" / f"{base}.xml").write_text(
            "<product><generalAnnotation><productInformation><projection>Ground Range</projection>"
            "</productInformation></generalAnnotation><imageAnnotation><imageInformation>"
            "<rangePixelSpacing>1.0e+01</rangePixelSpacing><azimuthPixelSpacing>1.0e+01</azimuthPixelSpacing>"
            "<incidenceAngleMidSwath>39.1</incidenceAngleMidSwath></imageInformation></imageAnnotation></product>"
        )
        (root / "annotation" / "calibration" / f"calibration-{base}.xml").write_text("<calibration/>")
    return values


def zipped(folder: Path) -> Path:
    """The folder as NAME.zip beside it."""
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return target


def envi_c3(place: Path) -> np.ndarray:
    """PolSARpro's covariance matrix, its diagonal: C11, C22, C33, powers."""
    values = amplitudes(3).astype(np.float32) ** 2
    (place / "C3").mkdir(parents=True)
    for name, band in zip(("C11", "C22", "C33"), values, strict=True):
        band.astype("<f4").tofile(place / "C3" / f"{name}.bin")
        (place / "C3" / f"{name}.bin.hdr").write_text(
            f"ENVI\nsamples = {WIDTH}\nlines = {HEIGHT}\nbands = 1\nheader offset = 0\n"
            "file type = ENVI Standard\ndata type = 4\ninterleave = bsq\nbyte order = 0\n"
        )
    (place / "C3" / "config.txt").write_text(f"Nrow\n{HEIGHT}\n---------\nNcol\n{WIDTH}\n")
    return values


def nisar_gcov(place: Path, name: str = "NISAR_L2_GCOV.h5") -> np.ndarray:
    """HHHH and HVHV, powers on a UTM grid, NaN beyond the swath."""
    import h5py

    values = amplitudes(2).astype(np.float32) ** 2
    values[:, :5] = np.nan
    with h5py.File(place / name, "w") as file:
        grid = file.create_group("science/LSAR/GCOV/grids/frequencyA")
        grid["xCoordinates"] = ORIGIN_X + STEP * (np.arange(WIDTH) + 0.5)
        grid["yCoordinates"] = ORIGIN_Y - STEP * (np.arange(HEIGHT) + 0.5)
        for axis in "xy":
            grid[f"{axis}Coordinates"].attrs["units"] = "meters"
        grid["projection"] = np.uint32(32633)
        grid["projection"].attrs["epsg_code"] = 32633
        grid["listOfPolarizations"] = np.array([b"HH", b"HV"])
        for term, band in zip(("HHHH", "HVHV"), values, strict=True):
            grid.create_dataset(term, data=band, chunks=(16, 16), compression="gzip", fillvalue=np.nan)
            grid[term].attrs["grid_mapping"] = b"projection"
        grid["mask"] = np.ones((HEIGHT, WIDTH), np.uint8)
    return values


def iceye(path: Path, i_and_q: np.ndarray) -> None:
    """An SLC's two arrays."""
    import h5py

    with h5py.File(path, "w") as file:
        file["s_i"], file["s_q"] = i_and_q
        file["gcps"] = np.zeros((9, 5))


def vrt(place: Path) -> np.ndarray:
    """scene.vrt over scene-part.tif, which has a place."""
    import rasterio

    values = amplitudes(1)
    with rasterio.open(
        place / "scene-part.tif", "w", driver="GTiff", dtype="uint16", count=1, height=HEIGHT, width=WIDTH,
        transform=rasterio.Affine(STEP, 0, ORIGIN_X, 0, -STEP, ORIGIN_Y), crs="EPSG:32633", nodata=0,
    ) as file:  # fmt: skip
        file.write(values[0], 1)
    with rasterio.open(place / "scene-part.tif") as file:
        wkt = file.crs.to_wkt()
    (place / "scene.vrt").write_text(
        f'<VRTDataset rasterXSize="{WIDTH}" rasterYSize="{HEIGHT}"><SRS>{wkt}</SRS>'
        f"<GeoTransform>{ORIGIN_X}, {STEP}, 0, {ORIGIN_Y}, 0, {-STEP}</GeoTransform>"
        '<VRTRasterBand dataType="UInt16" band="1"><SimpleSource><SourceFilename relativeToVRT="1">'
        "scene-part.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return values


def pair(place: Path, name: str = "a", polarizations: tuple[str, str] = ("vv", "vh")) -> np.ndarray:
    """NAME_vv.tif and NAME_vh.tif."""
    values = amplitudes(2)
    place.mkdir(parents=True, exist_ok=True)
    for polarization, band in zip(polarizations, values, strict=True):
        tifffile.imwrite(place / f"{name}_{polarization}.tif", band, photometric="minisblack", rowsperstrip=8)
    return values


def sicd(place: Path, pixel_type: str = "RE32F_IM32F", name: str = "scene.ntf") -> np.ndarray:
    """A SICD in slant range, as sarkit writes it; complex."""
    import lxml.etree
    import sarkit.sicd

    rng = np.random.default_rng(0)
    phase = np.exp(2j * np.pi * rng.random((HEIGHT, WIDTH)))
    values = np.round(amplitudes(1)[0] * phase).astype(np.complex64)
    icp = "".join(
        f'<ICP index="{index}"><Lat>{41.5 - 1e-4 * row}</Lat><Lon>{14.9 + 1e-4 * column}</Lon></ICP>'
        for index, row, column in (
            ("1:FRFC", 0, 0), ("2:FRLC", 0, WIDTH), ("3:LRLC", HEIGHT, WIDTH), ("4:LRFC", HEIGHT, 0),
        )
    )  # fmt: skip
    xml = lxml.etree.fromstring(
        '<SICD xmlns="urn:SICD:1.4.0"><CollectionInfo><CollectorName>X</CollectorName><CoreName>c</CoreName>'
        "<RadarMode><ModeType>SPOTLIGHT</ModeType></RadarMode><Classification>UNCLASSIFIED</Classification>"
        f"</CollectionInfo><ImageData><PixelType>{pixel_type}</PixelType><NumRows>{HEIGHT}</NumRows>"
        f"<NumCols>{WIDTH}</NumCols><FirstRow>0</FirstRow><FirstCol>0</FirstCol><FullImage>"
        f"<NumRows>{HEIGHT}</NumRows><NumCols>{WIDTH}</NumCols></FullImage><SCPPixel><Row>30</Row><Col>25</Col>"
        "</SCPPixel></ImageData><GeoData><EarthModel>WGS_84</EarthModel><SCP><ECF><X>4600000</X><Y>1230000</Y>"
        "<Z>4200000</Z></ECF><LLH><Lat>41.497</Lat><Lon>14.9025</Lon><HAE>0</HAE></LLH></SCP>"
        f"<ImageCorners>{icp}</ImageCorners></GeoData><Grid><ImagePlane>SLANT</ImagePlane><Row><UVectECF><X>1</X>"
        "<Y>0</Y><Z>0</Z></UVectECF><SS>2</SS></Row><Col><UVectECF><X>0</X><Y>1</Y><Z>0</Z></UVectECF><SS>4</SS>"
        "</Col></Grid><Timeline><CollectStart>2026-01-01T00:00:00Z</CollectStart></Timeline>"
        "<SCPCOA><ARPPos><X>5200000</X><Y>1400000</Y><Z>4700000</Z></ARPPos>"
        "<ARPVel><X>0</X><Y>7500</Y><Z>0</Z></ARPVel><SideOfTrack>R</SideOfTrack>"
        "<IncidenceAng>30</IncidenceAng></SCPCOA></SICD>"
    ).getroottree()
    unclassified = {"security": {"clas": "U"}}
    about = sarkit.sicd.NitfMetadata(
        xmltree=xml,
        file_header_part={"ostaid": "here", "ftitle": "test", **unclassified},
        im_subheader_part={"isorce": "test", **unclassified},
        de_subheader_part=unclassified,
    )
    stored = values
    if pixel_type == "RE16I_IM16I":
        stored = np.empty(values.shape, [("real", "i2"), ("imag", "i2")])
        stored["real"], stored["imag"] = values.real, values.imag
    with (place / name).open("wb") as file, sarkit.sicd.NitfWriter(file, about) as writer:
        writer.write_image(stored)
    return values[None]
