"""Rules of admission: what is refused, and what is only warned of, before an object is stored.

The schema (CRD) and its CEL rules refuse what the object itself can show; here is what needs other objects, the
object's former self, or counting addresses. A change is judged by what it makes worse: what was wrong before it is a
warning, so that an object which came to be wrong can be edited in steps.
"""
