"""Metadata of the package; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

# The address of the published repository, None until there is one. A test demands that pages and
# notebooks give it as soon as it is here, and nothing in its place before.
REPOSITORY: str | None = None

PYTHON = "3.11"


def on_its_python(*requirements: str) -> list[str]:
    """Any other is refused by its number, not by a requirement that has no release for it."""
    return [f"{requirement}; python_version >= '{PYTHON}'" for requirement in requirements]


def installed_name(package: str) -> str:
    """Programs are installed under a name that no folder of a user has."""
    return package.replace("experiments", "zaremba_programs", 1)


setup(
    name="zaremba-jax",
    version="0.1.0",
    description="Recurrent Neural Network Regularization (Zaremba et al. 2014) in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    url=REPOSITORY,
    license="Apache-2.0",
    python_requires=f">={PYTHON}",
    packages=[
        *find_packages(include=["zaremba_jax*"]),
        *map(installed_name, find_packages(include=["experiments*"])),
    ],
    package_dir={installed_name("experiments"): "experiments"},
    entry_points={"console_scripts": ["zaremba = zaremba_programs.__main__:main"]},
    package_data={"zaremba_jax": ["py.typed"]},
    install_requires=on_its_python(
        "absl-py>=2.1",
        "flax>=0.12",
        "jax>=0.10",
        "jaxlib>=0.10",
        "jaxtyping>=0.3",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.30",
        "pooch>=1.8",
        "rich>=13.8",
        "safetensors>=0.5",
        "tensorstore>=0.1.71",
    ),
    extras_require={
        "test": [
            "beartype>=0.20",
            "flatbuffers>=24.3",
            "hypothesis>=6.100",
            "ipykernel>=6.29",
            "jupytext>=1.16",
            "matplotlib>=3.9",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "pyright>=1.1.400",
            "pytest>=8.2",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "setuptools>=68",
            "tensorboardX>=2.6",
            "wandb>=0.19",
        ],
        "plots": ["matplotlib>=3.9"],
        "tensorboard": ["tensorboardX>=2.6"],
        "wandb": ["wandb>=0.19"],
        "stablehlo": ["flatbuffers>=24.3"],
        "notebooks": [
            "ipykernel>=6.29",
            "jupytext>=1.16",
            "matplotlib>=3.9",
            "nbclient>=0.10",
            "nbformat>=5.10",
        ],
        "compilers": on_its_python(
            "jax[tpu]>=0.10", "jax-cuda12-plugin>=0.10", "jax-cuda12-pjrt>=0.10"
        ),
        "peers": ["torch>=2.6"],
        "cuda": on_its_python("jax[cuda12]>=0.10"),
        "tpu": on_its_python("jax[tpu]>=0.10"),
    },
    classifiers=[
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
