"""Checkpoints of the official VILA-U code, read and written.

layout.py      what an official directory holds, checked before any weights are read
config.py      its configurations -> ours
tokenizer.py   its text tokenizer (sentencepiece) as a fast one
links.py       which of its tensors each of ours is made of
read.py        `UnifiedLM.from_official` and `vilau convert from-official`
template.py    what ours does not hold of an official checkpoint: files, names, left-over tensors
write.py       `vilau convert to-official`
"""
