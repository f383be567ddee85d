"""Install this folder's one package with every file below it: pip install ."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
packages = find_packages(str(HERE), exclude=["predictions*", "build*"])

setup(
    name=packages[0],
    version="1.0",
    packages=packages,
    package_data={packages[0]: ["**/*"]},
    include_package_data=False,
    install_requires=(HERE / "requirements.txt").read_text(encoding="utf-8").split(),
    python_requires=">=3.11",
)
