"""Views: a stream as output for people and programs (JSON lines, process tables).

Views know nothing of engines; they take chunks of a stream or decoded tasks.
"""
