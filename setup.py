"""Builds the distribution ``keras-defended``: import name ``defended``, command ``defended``.

The repository keeps ``attacks/`` and ``serving/`` beside ``defended/``; as import names they would be too common to
install, so ``package_dir`` places them below ``defended``. Every subpackage is listed: ``find_packages`` does not
follow the mapping, and ``tests/test_package.py`` compares this list with the disk.
"""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent

PACKAGES = {
    "defended": "defended",
    "defended.adapting": "defended/adapting",
    "defended.gloro": "defended/gloro",
    "defended.gloro.legacy": "defended/gloro/legacy",
    "defended.gloro.reparametrise": "defended/gloro/reparametrise",
    "defended.layers": "defended/layers",
    "defended.membership": "defended/membership",
    "defended.networks": "defended/networks",
    "defended.numerics": "defended/numerics",
    "defended.polytope": "defended/polytope",
    "defended.pretrained": "defended/pretrained",
    "defended.smoothing": "defended/smoothing",
    "defended.statistics": "defended/statistics",
    "defended.training": "defended/training",
    "defended.attacks": "attacks",
    "defended.attacks.black_box": "attacks/black_box",
    "defended.attacks.composed": "attacks/composed",
    "defended.attacks.core": "attacks/core",
    "defended.attacks.gradient": "attacks/gradient",
    "defended.attacks.measurement": "attacks/measurement",
    "defended.attacks.paper": "attacks/paper",
    "defended.serving": "serving",
    "defended.serving.artefacts": "serving/artefacts",
    "defended.serving.auditing": "serving/auditing",
    "defended.serving.clients": "serving/clients",
    "defended.serving.cluster": "serving/cluster",
    "defended.serving.exporting": "serving/exporting",
    "defended.serving.monitoring": "serving/monitoring",
    "defended.serving.server": "serving/server",
    "defended_cli": "serving/cli",
    "defended_settings": "defended/run_settings",
}

ONNX = ["tf2onnx>=1.17", "onnx>=1.23", "onnxruntime>=1.32"]
SIGNING = ["cryptography>=50.0"]
RAY = ["ray>=2.60", "pyarrow>=26.0"]
MEMBERSHIP = ["faiss-cpu>=1.15"]
ATTACKS = ["foolbox>=3.3.4", "pyarrow>=26.0"]
SERVING = [
    "tensorflow-serving-api>=2.21",
    "grpcio>=1.85",
    "grpcio-health-checking>=1.85",
    "aiohttp>=3.14",
    "orjson>=3.11",
    "urllib3>=2.6",
    "prometheus-client>=0.26",
]
TEST = [
    "pytest>=9.0",
    "pytest-xdist>=3.8",
    "hypothesis>=6.150",
    "jax>=0.10",
    "tensorboard>=2.21",
    "pyyaml>=6.0",
    "jsonschema>=4.26",
    "playwright>=1.65",
    *ONNX,
    *ATTACKS,
    *MEMBERSHIP,
    *SERVING,
    *SIGNING,
    *RAY,
]
LINT = ["ruff>=0.17", "mypy>=2.4"]
NOTEBOOKS = ["nbclient>=0.11", "nbformat>=5.11", "ipykernel>=7.4"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.8", "mkdocstrings[python]>=1.0"]


def read_version() -> str:
    """Return the version from ``defended/_version.py`` without importing TensorFlow through the package."""
    text = (ROOT / "defended" / "_version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__(?:: \w+)? = "([^"]+)"$', text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('defended/_version.py must hold one line of the form __version__ = "1.2.3"')
    return match.group(1)


setup(
    name="keras-defended",
    version=read_version(),
    description="Certified Keras classifiers that reject, and how far an attacker can degrade them",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "defended": ["py.typed", "moved_modules.json"],
        "defended.adapting": ["*.json"],
        "defended.pretrained": ["*.json", "*.keras"],
        "defended.serving.auditing": ["templates/*", "schemas/*.json"],
        "defended.serving.exporting": ["templates/*"],
    },
    install_requires=[
        "tensorflow>=2.21",
        "keras>=3.15",
        "tensorflow-probability>=0.25",
        "tf-keras>=2.21",  # TensorFlow Probability's layers ask for it
        "setuptools>=77",  # TensorFlow Probability imports distutils, which Python 3.12 has only from here
        "numpy>=2.4",
        "scipy>=1.17",
        "scikit-learn>=1.9",
        "threadpoolctl>=3.6",
        "typer>=0.29",
        "rich>=15.0",
        "jinja2>=3.1",
        "matplotlib>=3.11",
        "pydantic>=2.14",
    ],
    extras_require={
        "onnx": ONNX,
        "attacks": ATTACKS,
        "membership": MEMBERSHIP,
        "serving": SERVING,
        "signing": SIGNING,
        "ray": RAY,
        "test": TEST,
        "lint": LINT,
        "docs": DOCS,
        "notebooks": NOTEBOOKS,
        "dev": TEST + LINT + DOCS + NOTEBOOKS,
    },
    entry_points={"console_scripts": ["defended = defended_cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Security",
        "Typing :: Typed",
    ],
)
