"""Distill: teachers, class vectors, students, methods and the float graph that ships."""
