"""Views: what people and programs see of a stream (JSON lines, process tables).

Views know nothing of engines; they take chunks of a stream or decoded tasks.
"""
