"""What a training costs before it runs: memory by item, communication, work, time. Arithmetic only.

shape.py         the numbers that the cost of a head depends on
collectives.py   bytes handed to each collective, exactly
memory.py        items of memory, and when in a step each is alive; head_memory.py and backbone.py list them
work.py          floating-point operations and bytes moved
machines.py      what GPUs, and this kind of CPU, can do
times.py         from work to seconds, and what bounds them
advice.py        the largest class count that fits; what other settings would give
planning.py      from a configuration to a plan;  page.py  prints it
"""
