"""What pyproject.toml cannot say: `kernels/` is installed as crossearth_sar.kernels.

The symlink crossearth_sar/kernels -> ../kernels makes the same import work in a checkout; `kernels/` has no
__init__.py, so that it never shadows a top-level package of that name.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["crossearth_sar", "crossearth_sar.*"]), "crossearth_sar.kernels"],
    package_data={"crossearth_sar": ["py.typed"]},
)
