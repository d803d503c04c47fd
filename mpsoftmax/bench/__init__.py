"""The commands `mpsoftmax bench ...`: what a head, its memory, its ranks and the data loader cost here.

case.py         one head and its batch, as the commands and their processes pass it on
yardsticks.py   bare matrix products; plain autograd softmax
incumbent.py    arcface_torch's PartialFC_V2
timing.py       interleaved repetitions;  resident.py  peak memory of a process
record.py       what the figures depend on besides the code; the CSV;  plots.py
processes.py    fresh processes and gloo ranks

head.py, memory.py, scaling.py, collectives.py, loader.py are one command each.
"""
