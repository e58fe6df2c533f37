"""Makes a project for a data set: configs of teacher, student and distillation, a comparison and a sweep."""

from mmkd.project.make import Project, make_project, use_teacher

__all__ = ["Project", "make_project", "use_teacher"]
