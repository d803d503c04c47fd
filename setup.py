from setuptools import find_namespace_packages, setup

# Everything else is in pyproject.toml. Namespace packages, because kernels/ (reached through the
# symlink mpsoftmax/kernels) has no __init__.py: an installed package named `kernels` must keep working.
setup(packages=find_namespace_packages(include=["mpsoftmax*"]))
