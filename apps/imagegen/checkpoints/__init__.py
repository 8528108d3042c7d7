"""The checkpoints of the paper's authors: read into our models, and written back.

`release` has the doors, `official_config` the meaning of a config.yaml, `stage1` and `stage2` the
names and layouts of the tensors.
"""

from imagegen.checkpoints.release import export_release, import_release

__all__ = ["export_release", "import_release"]
