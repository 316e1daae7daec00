"""Graphs of tasks: finding a cycle among new dependencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def find_cycle(edges: Mapping[str, Sequence[str]]) -> list[str] | None:
    """A path of two or more nodes that returns to its start (first == last), or None.

    `edges` maps a node to those it depends on; nodes without an entry end a path. A node that names
    itself is no cycle here: a task may depend on itself (queue.md T-32). Runs in linear time and
    without recursion, so a chain of thousands is fine.
    """
    done: set[str] = set()
    for start in edges:
        if start in done:
            continue
        path: list[str] = [start]
        position = {start: 0}
        iterators = [iter(edges[start])]
        while iterators:
            for node in iterators[-1]:
                if node == path[-1] or node in done or node not in edges:
                    continue
                if node in position:
                    return [*path[position[node] :], node]
                position[node] = len(path)
                path.append(node)
                iterators.append(iter(edges[node]))
                break
            else:
                iterators.pop()
                finished = path.pop()
                del position[finished]
                done.add(finished)
    return None
