"""Frozen models that turn recordings into frame-level vectors, all behind one interface.

`load_teacher` takes a `TeacherConfig` (or the same as a dictionary) and gives a `Teacher`.
Importing this package is light: a family's code, and `transformers`, load with the first
teacher of that family.
"""

from spear.teachers.base import Precision, Teacher, TeacherIdentity
from spear.teachers.config import FAMILIES, TeacherConfig, TeacherFamily
from spear.teachers.load import load_teacher
from spear.teachers.windows import Excerpts, Window, Windowing

__all__ = [
    "FAMILIES",
    "Excerpts",
    "Precision",
    "Teacher",
    "TeacherConfig",
    "TeacherFamily",
    "TeacherIdentity",
    "Window",
    "Windowing",
    "load_teacher",
]
