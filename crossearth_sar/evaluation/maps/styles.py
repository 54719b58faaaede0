"""Names and colours of the classes for GIS programs, in files beside a GeoTIFF.

A TIFF's own colour table has 256 rows whatever the classes; GDAL takes the one in NAME.tif.aux.xml over it,
and QGIS the style in NAME.qml. What this is not: needed to read the map, which holds the class numbers.
"""

from __future__ import annotations

from xml.etree import ElementTree as xml

from crossearth_sar.data.sample import ClassTable


def gdal_categories(classes: ClassTable) -> str:
    """Text of GDAL's .aux.xml: category names, and a colour table of the classes alone."""
    root = xml.Element("PAMDataset")
    band = xml.SubElement(root, "PAMRasterBand", band="1")
    names = xml.SubElement(band, "CategoryNames")
    for name in classes.names:
        xml.SubElement(names, "Category").text = name
    xml.SubElement(band, "ColorInterp").text = "Palette"
    table = xml.SubElement(band, "ColorTable")
    for red, green, blue in classes.palette:
        xml.SubElement(table, "Entry", c1=str(red), c2=str(green), c3=str(blue), c4="255")
    return _text(root)


def qgis_style(classes: ClassTable) -> str:
    """Text of a .qml: one row a class."""
    root = xml.Element("qgis", version="3.22", styleCategories="Symbology")
    renderer = xml.SubElement(
        xml.SubElement(root, "pipe"), "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1"
    )
    palette = xml.SubElement(renderer, "colorPalette")
    for index, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True)):
        red, green, blue = color
        xml.SubElement(
            palette,
            "paletteEntry",
            value=str(index),
            color=f"#{red:02x}{green:02x}{blue:02x}",
            alpha="255",
            label=name,
        )
    return "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n" + _text(root)


def _text(root: xml.Element) -> str:
    xml.indent(root)
    return xml.tostring(root, encoding="unicode") + "\n"
