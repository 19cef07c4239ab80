"""Frozen models that turn recordings into frame-level vectors, all behind one interface.

`load_teacher` takes a `TeacherConfig` (or the same as a dictionary) and gives a `Teacher`.
Importing this package is light: a family's code, and `transformers`, load with the first
teacher of that family.
"""

from spear.teachers.base import Teacher, TeacherIdentity
from spear.teachers.config import FAMILIES, TeacherConfig, TeacherFamily
from spear.teachers.load import load_teacher

__all__ = [
    "FAMILIES",
    "Teacher",
    "TeacherConfig",
    "TeacherFamily",
    "TeacherIdentity",
    "load_teacher",
]
