"""The build of what pyproject.toml cannot say: templates lie beside the packages, and in the wheel in one of them."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithTemplates(build_py):
    """The usual build of the packages, and `templates/` as `adapterhub/templates/`."""

    def run(self) -> None:
        """Build; an editable installation reads the templates where they lie."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "adapterhub" / "templates"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree("templates", target)


setup(cmdclass={"build_py": BuildWithTemplates})
